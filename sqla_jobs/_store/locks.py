"""Locks on names, such as channels and unique keys, until the transaction ends."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2s

from sqlalchemy import Executable

from sqla_jobs._dialects import JobDialect, dialect_of
from sqla_jobs._store.base import Where, built_once, connection_of, execute
from sqla_jobs.models import JobTables

MOST_NAMES = 1_000
"""More names at once could fill the server's lock table: then one lock is for all."""


def lock_names(
    session: Where,
    tables: JobTables,
    space: str,
    names: Collection[tuple[str, ...]],
    *,
    whole: bool = False,
) -> None:
    """
    Wait until this transaction alone has *names*, in one statement.

    In sorted order, so that two flushes never wait for each other in a circle. With
    more than `MOST_NAMES` it is the whole *space* of the job table that is locked,
    which the others hold shared.

    Args:
        space: What the names are of, such as "channel".
        whole: Whether the whole space is locked in any case; default no.
    """
    connection = connection_of(session, tables)
    if not dialect_of(connection).name_locks:
        return
    # As the wake-ups: the tenants of schema_translate_map do not meet.
    of = (tables.channel_in(connection.get_execution_options()), space)
    keys = sorted({_key(*of, *name) for name in names})
    shared = not whole and len(keys) <= MOST_NAMES
    params = {
        "keys": [_key(*of), *(keys if shared else ())],
        "shared": [shared, *(False for _ in keys if shared)],
    }
    execute(connection, tables, _locking, params)


@built_once
def _locking(_tables: JobTables, dialect: JobDialect) -> Executable:
    return dialect.lock_names()


def _key(*parts: str) -> int:
    # No part holds a NUL: no text in the database can.
    digest = blake2s("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
