"""A runner looks at the tables before it starts: it refuses only what hinders it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, text

from sqla_jobs import SchemaMismatch
from sqla_jobs.testing import DatabaseServer
from tests.runner.harness import Base, Kit, Task, ok


@pytest.fixture(scope="module")
def database(sqla_jobs_server: DatabaseServer) -> Iterator[Engine]:
    """Yield an engine on a database of this module, with the application's tables."""
    with sqla_jobs_server.temporary_database("start") as dsn:
        engine = create_engine(dsn)
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()


@pytest.fixture
def changed(database: Engine, kit: Kit) -> Iterator[Kit]:
    """Yield the application on that database, which is put right afterwards."""
    kit.dsn = database.url.render_as_string(hide_password=False)
    yield kit
    with database.begin() as connection:
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)


async def nothing(job: object, ctx: object) -> None:
    """Handle a job."""


def change(engine: Engine, statements: str) -> None:
    """Do what a migration does, or somebody by hand."""
    with engine.begin() as connection:
        connection.execute(text(statements))


@pytest.mark.parametrize("verb", ["run", "run_until_idle", "run_one", "start"])
def test_database_behind_the_code_is_refused(
    changed: Kit, database: Engine, verb: str
) -> None:
    """However it is started, the difference is named, with the command."""
    changed.handle(nothing)
    change(database, "ALTER TABLE jobs DROP COLUMN progress, ADD by_hand int")
    with pytest.raises(SchemaMismatch) as raised:
        changed.call(verb)

    message = str(raised.value)
    assert "jobs: column progress is missing" in message
    assert "alembic upgrade head" in message
    assert [one.blocking for one in raised.value.differences] == [True, False]


HARMLESS = {
    "a column of newer code": ("ALTER TABLE jobs ADD later int", "no column later"),
    "an index": ("CREATE INDEX by_hand ON jobs (kind)", "no index by_hand"),
    "storage": ("ALTER TABLE jobs SET (fillfactor = 90)", "fillfactor is 45"),
    "a foreign key": (
        "ALTER TABLE jobs DROP CONSTRAINT jobs_owner_id_fkey",
        "foreign key on owner_id is missing",
    ),
}


@pytest.mark.parametrize("case", HARMLESS.values(), ids=HARMLESS)
def test_harmless_difference_is_one_warning(
    changed: Kit,
    database: Engine,
    case: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Jobs run; a runner says once what differs, however often it is started."""
    changed.handle(nothing)
    statement, words = case
    change(database, statement)
    change(database, f"INSERT INTO jobs (kind) VALUES ('{Task.__job_options__.kind}')")

    async def use(runner: object) -> None:
        for _ in range(2):
            await ok(runner.run_until_idle())  # type: ignore[attr-defined]

    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        changed.with_runner(use)

    with database.connect() as connection:
        assert connection.scalar(text("SELECT state FROM jobs")) == "completed"
    (warning,) = [m for m in caplog.messages if "differ from the code" in m]
    assert words in warning


def test_tables_as_declared_are_no_warning(
    changed: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """Silence means that all is well."""
    changed.handle(nothing)
    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        changed.call("run_until_idle")

    assert [m for m in caplog.messages if "differ" in m] == []
