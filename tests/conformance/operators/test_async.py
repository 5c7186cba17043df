"""Every operator's verb works through `AsyncSession.run_sync`, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs import (
    JobValueError,
    MissingTables,
    counts,
    dead_letters,
    exists,
    history,
    purge,
    purge_archive,
    request_cancel,
    requeue,
)
from tests.conformance.operators.kit import Job, Send, add

AGE = timedelta(0)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_verbs_run_on_an_async_session(job_engine: Engine, driver: str) -> None:
    """One story with all of them, rolled back at the end."""

    async def story() -> None:
        url = job_engine.url.set(drivername=f"postgresql+{driver}")
        options = job_engine.get_execution_options()
        engine = create_async_engine(url, execution_options=options)
        async with AsyncSession(engine) as session:
            run = session.run_sync
            job = await run(add, Send(subject="Hi"))
            where = Send.subject == "Hi"
            assert await run(exists, Job, job)
            assert (await run(request_cancel, Job, where=where)).cancelled == (job,)
            assert (await run(requeue, Job, job)).requeued == (job,)
            (count,) = await run(counts, Job)
            assert (count.queue, count.count) == ("mail", 1)
            dead = await run(add, Send(subject="Ho"), state="discarded")
            (letter,) = await run(dead_letters, Send)
            assert (letter.id, letter.subject) == (dead, "Ho")
            assert await run(history, Job, dead) == []
            changes = {"copies": 3, "priority": 1, "delay": timedelta(days=1)}
            answer = await run(requeue, Job, where=Send.id == dead, changes=changes)
            assert answer.requeued == (dead,)
            assert (await run(request_cancel, Job, dead)).cancelled == (dead,)
            assert await run(purge, Job, ids=dead, dry_run=True) == 1
            assert await run(purge, Job, where=Send.subject == "Ho") == 1
            assert await run(purge_archive, Job, older_than=AGE) == 0
        await engine.dispose()

    asyncio.run(story())


VERBS: dict[str, Callable[[Any], object]] = {
    "request_cancel": lambda session: request_cancel(session, Job, 1),
    "requeue": lambda session: requeue(session, Job, 1),
    "purge": lambda session: purge(session, Job),
    "purge_archive": lambda session: purge_archive(session, Job, older_than=AGE),
    "dead_letters": lambda session: dead_letters(session, Job),
    "history": lambda session: history(session, Job, 1),
    "counts": lambda session: counts(session, Job),
    "exists": lambda session: exists(session, Job, 1),
}


@pytest.mark.parametrize("verb", VERBS)
def test_async_session_itself_is_refused(verb: str) -> None:
    """The error says how to call the verb."""
    with pytest.raises(JobValueError, match=rf"session\.run_sync\({verb}, \.\.\."):
        VERBS[verb](AsyncSession())


@pytest.mark.parametrize("verb", VERBS)
def test_missing_tables_are_named(engine: Engine, verb: str) -> None:
    """Before the migration ran, each verb says what is missing."""
    nowhere = engine.execution_options(schema_translate_map={None: "nowhere"})
    with (
        Session(nowhere) as session,
        pytest.raises(MissingTables, match="the database has no table"),
    ):
        VERBS[verb](session)
