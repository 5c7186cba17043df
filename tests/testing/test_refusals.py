"""Nothing is ever committed, and what cannot work is refused with the fix."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from sqla_jobs import JobValueError, UnsupportedDialect
from sqla_jobs.testing import assert_enqueued, drain, perform, run_one
from tests.testing.kit import Always, Job, Kit, Note, Task, ok, rows

HELPERS = {
    "run_one": lambda session: run_one(session, Job),
    "drain": lambda session: drain(session, Job),
    "perform": lambda session: perform(Always(), session=session),
    "assert_enqueued": lambda session: assert_enqueued(session, Always),
}


@pytest.fixture(params=HELPERS.values(), ids=list(HELPERS))
def helper(request: pytest.FixtureRequest) -> Any:
    """Return each helper in turn, as a function of the session."""
    return request.param


@pytest.mark.parametrize("what", ["commit", "rollback"])
def test_handler_may_not_end_the_tests_transaction(kit: Kit, what: str) -> None:
    """A commit or rollback of the connection is refused, hidden or not."""

    async def handler(job: Any, ctx: Any) -> None:
        connection = await ok(ctx.session.connection())
        try:
            await ok(getattr(connection, what)())
        except JobValueError:
            return

    kit.handle(handler)
    kit.add(Task())

    with pytest.raises(JobValueError, match="the test's own transaction; let it use"):
        kit.call(run_one, raise_errors=False)


@pytest.mark.parametrize("what", ["commit", "rollback"])
def test_handler_may_not_use_the_tests_session(kit: Kit, what: str) -> None:
    """A handler that ends the transaction of the test's session is refused."""

    async def handler(job: Any, ctx: Any) -> None:
        ctx.session.add(Note(text="mine"))
        await ok(ctx.session.flush())
        await ok(getattr(kit.session, what)())

    kit.handle(handler)
    kit.add(Task())

    with pytest.raises(JobValueError, match=r"job \d+ would commit or roll back"):
        kit.call(run_one, raise_errors=False)


def test_perform_refuses_it_too(both: Kit) -> None:
    """So does `perform`, though the handler hides it."""

    async def handler(job: Any, ctx: Any) -> None:
        try:
            await ok((await ok(ctx.session.connection())).commit())
        except JobValueError:
            return

    both.handle(handler)

    with pytest.raises(JobValueError, match="the test's own transaction"):
        both.run(perform(Task(), session=both.session))


def test_listeners_are_gone_afterwards(tables: Engine) -> None:
    """Once a helper has returned, the connection commits as ever."""
    with tables.connect() as connection, Session(connection) as session:
        session.add(Always())
        assert run_one(session) == "completed"
        session.rollback()
        connection.execute(text("SELECT 1"))
        connection.commit()

    assert not any(rows(tables).values())


def test_autocommit_is_refused(tables: Engine, helper: Any) -> None:
    """A session in AUTOCOMMIT mode is refused before anything is written."""
    with Session(tables.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.add(Always())
        with pytest.raises(JobValueError, match="this one is in AUTOCOMMIT mode"):
            helper(session)

    assert not any(rows(tables).values())


def test_unsupported_database_is_refused(helper: Any) -> None:
    """A session on SQLite is told of the server that tests can have."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    try:
        with Session(engine) as session, pytest.raises(UnsupportedDialect) as refused:
            helper(session)
    finally:
        engine.dispose()

    assert "does not support 'sqlite'" in str(refused.value)
    assert "PostgresServer, and the pytest plugin" in str(refused.value)


def test_failed_transaction_is_explained(tables: Engine, helper: Any) -> None:
    """A transaction in which a statement failed is said to be the problem."""
    with Session(tables) as session:
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT * FROM nowhere"))
        with pytest.raises(JobValueError, match=r"failed; call session.rollback\(\)"):
            helper(session)
        session.rollback()
        session.add(Always())
        helper(session)


def test_failed_flush_is_explained(tables: Engine, helper: Any) -> None:
    """So is a session whose flush failed."""
    with tables.connect() as connection:
        outer = connection.begin()
        with Session(connection) as session:
            session.add_all([Note(text="same"), Note(text="same")])
            with pytest.raises(IntegrityError):
                session.flush()
            with pytest.raises(JobValueError, match="needs a working transaction"):
                helper(session)
        if outer.is_active:
            outer.rollback()


def test_own_flush_error_stays(sync: Kit, helper: Any) -> None:
    """What the test's own objects violate is raised as it is."""
    sync.add(Note(text="same"), Note(text="same"))

    with pytest.raises(IntegrityError):
        helper(sync.session)


@pytest.mark.parametrize("wrong", ["session", 3, sessionmaker()], ids=repr)
def test_what_is_no_session_is_refused(wrong: Any, helper: Any) -> None:
    """Only sessions are taken."""
    with pytest.raises(JobValueError, match="needs the test's Session or AsyncSession"):
        helper(wrong)


def test_import_is_cheap() -> None:
    """Neither pytest nor the async extension is needed to import the helpers."""
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['greenlet'] = None;"
        "import sqla_jobs.testing;"
        "assert 'sqlalchemy.ext.asyncio.session' not in sys.modules"
    )

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0
