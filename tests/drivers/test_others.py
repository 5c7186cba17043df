"""Drivers that sqla_jobs has no code for: they work, without wake-ups and COPY."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import MissingTables, claim, complete, enqueue_many
from sqla_jobs.runner.threads import Runner
from tests.runner.harness import Base, Job, Kit, Task


def test_pg8000_enqueues_claims_and_completes(
    dsn: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The runner polls, and says so once."""
    pytest.importorskip("pg8000")
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, "threads")
    url = make_url(dsn)
    host = str(url.host or url.query.get("host"))
    if host.startswith("/"):
        options: dict[str, Any] = {"unix_sock": f"{host}/.s.PGSQL.5432"}
        own = create_engine(
            url.set(drivername="postgresql+pg8000", query={}), connect_args=options
        )
    else:
        own = create_engine(url.set(drivername="postgresql+pg8000"))
    maker = sessionmaker(own)

    async def run(job: Any, ctx: Any) -> int:
        return int(job.n)

    kit.handle(run)
    try:
        with maker() as session:
            session.add(Task(n=1))
            enqueue_many(session, Task, [{"n": n} for n in range(150)])
            session.commit()
            (held,) = claim(session, Job)
            complete(session, held)
            session.commit()
        with caplog.at_level(logging.INFO, "sqla_jobs"):
            Runner(maker, Job).run_until_idle()
        assert kit.states() == ["completed"] * 151
        said = [m for m in caplog.messages if "no wake-ups through" in m]
        assert len(said) == 1
        with pytest.raises(MissingTables, match="no table jobs"):
            missing(own)
    finally:
        kit.close()
        own.dispose()


def missing(own: Engine) -> None:
    """Enqueue where there are no tables."""
    elsewhere = own.execution_options(schema_translate_map={None: "pg_catalog"})
    with Session(elsewhere) as session:
        claim(session, Job)
