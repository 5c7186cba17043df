"""Tables of a test's own classes, in a schema of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema, DropSchema


@contextmanager
def created(base: Any, engine: Engine) -> Iterator[Session]:
    """Yield a session on new tables of *base*; they are dropped afterwards."""
    schema = f"models_{uuid4().hex[:12]}"
    own = engine.execution_options(schema_translate_map={None: schema})
    with engine.begin() as connection:
        connection.execute(CreateSchema(schema))
    try:
        base.metadata.create_all(own)
        with Session(own) as session:
            yield session
    finally:
        with engine.begin() as connection:
            connection.execute(DropSchema(schema, cascade=True))


def schema_of(session: Session) -> str:
    """Return the schema that `created` made for *session*."""
    options = session.connection().get_execution_options()
    return str(options["schema_translate_map"][None])


@contextmanager
def statements(connection: Connection) -> Iterator[list[str]]:
    """Yield the list of statements that *connection* executes meanwhile."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        seen.append(args[2])

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(connection, "before_cursor_execute", note)
