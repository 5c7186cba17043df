"""What bounds the connections of our own on PostgreSQL's side."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, literal, literal_column

PROBE_SECONDS = 10  # until an idle client is asked, and between two questions
PROBES = 3
_PROBES = {
    "tcp_keepalives_idle": PROBE_SECONDS,
    "tcp_keepalives_interval": PROBE_SECONDS,
    "tcp_keepalives_count": PROBES,
}
SETTING = """
SELECT count(pg_catalog.set_config(name, value, {is_local}))
FROM (VALUES {rows}) AS given (name, value)
WHERE {where} AND pg_catalog.current_setting(name, true) IS NOT NULL
"""


def limit_session(
    connection: Any, raw: Any, limit: timedelta, *, silence: timedelta
) -> bool:
    """
    Set the limits of the session, and commit; return False if it is not ours alone.

    A pooler tells its clients a process id of its own making, since the server's
    changes with each transaction. The settings are made by the statement that compares
    them: a second one might reach another server process.
    """
    pid = _told_pid(raw)
    if pid is None:
        return False
    settings = _bounds(limit, silence) | _keepalives(limit)
    ours = f"pg_catalog.pg_backend_pid() = {pid}"
    found = _set(connection, settings, is_local="false", where=ours)
    connection.commit()
    return found > 0


def limit_transaction(connection: Any, limit: timedelta, *, silence: timedelta) -> None:
    """Set the limits of the transaction that has just begun."""
    _set(connection, _bounds(limit, silence), is_local="true", where="true")


def limit_commit(milliseconds: ColumnElement[str]) -> ColumnElement[Any]:
    """Return what keeps a transaction that should commit now from lasting for ever."""
    idle: ColumnElement[str] = literal_column("'idle_in_transaction_session_timeout'")
    return func.set_config(idle, milliseconds, literal_column("true"))


def watch_client() -> list[ColumnElement[Any]]:
    """Return what ends the transaction, and its locks, once its client is gone."""
    return [
        func.set_config(literal(name), literal(str(value)), literal_column("true"))
        for name, value in _PROBES.items()
    ]


def begin_claims(connection: Any) -> None:
    """
    Set what a session needs whose claims and sweeps commit by themselves.

    To plan a claim took twice as long as to run it; so it is planned once, and what
    was planned while the table was small would read all of it later.
    """
    settings = {
        "default_transaction_isolation": "read committed",
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
    }
    _set(connection, settings, is_local="false", where="true")


def _bounds(limit: timedelta, silence: timedelta) -> dict[str, int]:
    # Those of the role or the database are meant for others; 0 means none, and a lock
    # is waited for no longer than the statement may take. What we send reads few rows,
    # whatever the planner expects: to compile it took up to 5 s, to run it 0.03.
    return {
        "jit": 0,
        "idle_in_transaction_session_timeout": _milliseconds(silence),
        "statement_timeout": _milliseconds(limit),
        "lock_timeout": 0,
        "transaction_timeout": 0,
    }


def _keepalives(limit: timedelta) -> dict[str, int]:
    # The server notices a vanished client too; without effect on Unix sockets.
    return {
        "idle_session_timeout": 0,
        **_PROBES,
        "tcp_user_timeout": min(_milliseconds(limit), 1000 * PROBE_SECONDS * PROBES),
    }


def _set(
    connection: Any, settings: Mapping[str, int | str], *, is_local: str, where: str
) -> int:
    """Set what this version of the server knows of *settings*; return how many."""
    rows = ", ".join(f"('{name}', '{value}')" for name, value in settings.items())
    statement = SETTING.format(rows=rows, is_local=is_local, where=where)
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
        count: int = cursor.fetchone()[0]
    finally:
        cursor.close()
    return count


def _told_pid(raw: Any) -> int | None:
    """Return the process id of the server that the driver was told on connecting."""
    if hasattr(raw, "get_server_pid"):  # asyncpg
        pid = raw.get_server_pid()
    elif hasattr(raw, "_backend_key_data"):  # pg8000
        pid = int.from_bytes(raw._backend_key_data[:4])
    else:  # psycopg and psycopg2
        pid = getattr(getattr(raw, "info", None), "backend_pid", None)
    return pid if isinstance(pid, int) else None


def _milliseconds(limit: timedelta) -> int:
    return round(limit.total_seconds() * 1000)
