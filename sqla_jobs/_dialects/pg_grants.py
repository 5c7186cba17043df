"""The least privileges of those who enqueue, work and administer, as GRANTs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.dialects import postgresql

from sqla_jobs.models import JobTables

# What keys and holds are looked up and changed by: of other jobs too, but neither
# payload nor result, checkpoint or error of any.
_LOOKED_AT = {
    *("id", "kind", "queue", "channel", "state", "run_at", "unique_key", "fingerprint"),
    *("ordered", "held_until", "reason", "cancel_requested_at", "finished_at"),
}
_CHANGED = "state, finished_at, cancel_requested_at, reason, held_until"
_BUCKET = "tokens, tokens_at"  # of a rate limit
_ALL = "SELECT, INSERT, UPDATE, DELETE"


def grants(
    tables: JobTables,
    *,
    enqueue: str,
    work: str,
    admin: str,
    schemas: Mapping[Any, str | None] | None = None,
) -> list[str]:
    """
    Return the statements that give three roles what they need, and no more.

    Args:
        enqueue: The role that enqueues, and confirms or aborts holds.
        work: The role of runners and workers; what their handlers enqueue too.
        admin: The role that cancels, requeues, deletes and sets up queues.
        schemas: The ``schema_translate_map`` of the engine. Default none.
    """
    roles = {"enqueue": _quoted(enqueue), "work": _quoted(work)}
    roles["admin"] = _quoted(admin)
    everybody = ", ".join(roles.values())
    translated = {
        table: (schemas or {}).get(table.schema, table.schema)
        for table in tables.all_tables()
    }
    made = [
        f"GRANT USAGE ON SCHEMA {_quoted(schema)} TO {everybody};"
        for schema in sorted({one for one in translated.values() if one})
    ]
    for table, schema in translated.items():
        name = f"{_quoted(schema)}." if schema else ""
        name += _quoted(table.name)
        made.append(f"REVOKE ALL ON {name} FROM PUBLIC, {everybody};")
        for role, privileges in _privileges(tables, table):
            made.append(f"GRANT {privileges} ON {name} TO {roles[role]};")
    made.append(f"GRANT {roles['enqueue']} TO {roles['work']};")
    return made


def _privileges(tables: JobTables, table: Table) -> Iterator[tuple[str, str]]:
    if table is tables.table:
        read = ", ".join(_quoted(c.name) for c in table.c if _is_read(c))
        yield "enqueue", f"INSERT, SELECT ({read}), UPDATE ({_CHANGED})"
        yield from (("work", "SELECT, UPDATE, DELETE"), ("admin", _ALL))
    elif table is tables.attempts:
        yield from (("work", "SELECT, INSERT, DELETE"), ("admin", "SELECT, DELETE"))
    elif table is tables.queues:
        yield from (("work", f"SELECT, UPDATE ({_BUCKET})"), ("admin", _ALL))
    elif table is tables.runners:
        yield from (("work", _ALL), ("admin", "SELECT"))
    elif table is tables.idempotency:
        yield from (("enqueue", "SELECT, INSERT, UPDATE"), ("work", "DELETE"))
        yield "admin", "SELECT, UPDATE, DELETE"
    elif table is tables.archive:
        yield from (("work", "SELECT, INSERT"), ("admin", "SELECT, UPDATE, DELETE"))
    else:  # of a class that has one
        key = ", ".join(_quoted(c.name) for c in table.primary_key)
        yield "enqueue", f"INSERT, SELECT ({key})"
        yield from (("work", "SELECT, UPDATE, DELETE"), ("admin", _ALL))


def _is_read(column: Column[Any]) -> bool:
    # An INSERT returns what the server filled in.
    filled = column.server_default is not None and column.name != "payload"
    return filled or column.name in _LOOKED_AT


def _quoted(name: str) -> str:
    # Of its own, since the drivers' double each "%".
    dialect: Any = postgresql.dialect
    preparer = dialect().identifier_preparer
    preparer._double_percents = False
    return str(preparer.quote(name))
