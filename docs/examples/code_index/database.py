"""Where the demonstration has its tables: a server of its own, or a schema."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Connection, create_engine, inspect, make_url
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs.testing import PostgresServer

VARIABLE = "SQLA_JOBS_DEMO_DSN"
SCHEMA = "sqla_jobs_demo"
CONFIG = Path(__file__).with_name("alembic.ini")


def place() -> str:
    """Say in words where the tables will be."""
    if dsn := os.environ.get(VARIABLE):
        return f"schema {SCHEMA!r}, made and dropped in {make_url(dsn)!r} ({VARIABLE})"
    return "a PostgreSQL server of its own, which is gone afterwards"


@contextmanager
def database() -> Iterator[str]:
    """
    Yield the URL of an empty place for tables; remove it with them at the end.

    Raises:
        SystemExit: If the schema exists: whatever is in it is not ours.
    """
    if dsn := os.environ.get(VARIABLE):
        with _schema(make_url(dsn)) as url:
            yield url.render_as_string(hide_password=False)
    else:
        with PostgresServer() as server:
            yield server.dsn


def migrate(connection: Connection) -> str | None:
    """Do what `alembic upgrade head` does; return the revision that is reached."""
    config = Config(CONFIG)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _schema(url: URL) -> Iterator[URL]:
    if url.get_driver_name() != "psycopg":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    try:
        if inspect(engine).has_schema(SCHEMA):
            raise SystemExit(
                f"there is a schema {SCHEMA!r} in {url!r} already; if it is left over"
                f" from this demonstration: DROP SCHEMA {SCHEMA} CASCADE"
            )
        with engine.begin() as connection:
            connection.execute(CreateSchema(SCHEMA))
        try:
            old = url.query.get("options", "")
            options = f"{old} -csearch_path={SCHEMA}".strip()
            yield url.update_query_dict({"options": options})
        finally:
            with engine.begin() as connection:
                connection.execute(DropSchema(SCHEMA, cascade=True))
    finally:
        engine.dispose()
