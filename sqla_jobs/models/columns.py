"""The columns, indexes and storage parameters of the hot table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    event,
    func,
    text,
)
from sqlalchemy.orm import MappedColumn, mapped_column
from sqlalchemy.sql.elements import conv

from sqla_jobs._core.options import DEFAULTS
from sqla_jobs._core.states import FINAL, JobState
from sqla_jobs.models.types import BYTES, DURATION, JSON_VALUE, TIME, UUID

OPTIONAL_TEXT = Text().evaluates_none()

# The key first, the user's own columns (sort order 0) last.
FIRST = -100


def job_columns() -> dict[str, MappedColumn[Any]]:
    """
    Return new columns of the hot table, by attribute name.

    What changes stands together: PostgreSQL logs an update without the bytes before and
    after the changed ones, where the page has room for the new row.
    """
    return {**_constant_columns(), **_changing_columns()}


COLUMN_NAMES: frozenset[str]


def _column(*args: Any, **kw: Any) -> MappedColumn[Any]:
    kw.setdefault("nullable", False)
    return mapped_column(*args, sort_order=FIRST, **kw)


def _nullable(type_: Any) -> MappedColumn[Any]:
    return _column(type_, nullable=True)


def _constant(type_: Any, value: str) -> MappedColumn[Any]:
    # Server defaults, so that rows written without the constructor work as well.
    return _column(type_, server_default=text(value))


def _constant_columns() -> dict[str, MappedColumn[Any]]:
    """Return what an attempt leaves as it is."""
    return {
        "id": _column(BigInteger, Identity(), primary_key=True),
        "kind": _column(Text),
        "queue": _constant(Text, f"'{DEFAULTS.queue}'"),
        "channel": _constant(Text, "''"),
        "priority": _constant(SmallInteger, str(DEFAULTS.priority)),
        "ordered": _constant(Boolean, "false"),
        "unique_key": _nullable(OPTIONAL_TEXT),
        "fingerprint": _nullable(OPTIONAL_TEXT),
        "payload": _constant(JSON_VALUE, "'{}'"),
        "payload_bytes": _nullable(BYTES),
        "tags": _nullable(JSON_VALUE),
        "meta": _nullable(JSON_VALUE),
        "max_attempts": _constant(Integer, str(DEFAULTS.max_attempts)),
        "backoff": _constant(Text, f"'{DEFAULTS.backoff.spec()}'"),
        "timeout": _nullable(DURATION),
        "lease": _nullable(DURATION),
        "held_until": _nullable(TIME),
        "created_at": _column(TIME, server_default=func.now()),
    }


def _changing_columns() -> dict[str, MappedColumn[Any]]:
    """Return what attempts change: most of them the first."""
    return {
        "run_at": _column(TIME, server_default=func.now()),
        "lane": _constant(SmallInteger, "0"),
        "state": _constant(Text, f"'{JobState.AVAILABLE}'"),
        "attempt": _constant(Integer, "0"),
        "snoozes": _constant(Integer, "0"),
        "crashes": _constant(Integer, "0"),
        "lease_token": _constant(BigInteger, "0"),
        "leased_until": _nullable(TIME),
        "runner_id": _nullable(UUID),
        "started_at": _nullable(TIME),
        "finished_at": _nullable(TIME),
        "cancel_requested_at": _nullable(TIME),
        "checkpoint": _nullable(JSON_VALUE),
        "progress": _nullable(JSON_VALUE),
        "result": _nullable(JSON_VALUE),
        "reason": _nullable(OPTIONAL_TEXT),
        "last_error": _nullable(OPTIONAL_TEXT),
    }


COLUMN_ORDER = tuple(job_columns())
COLUMN_NAMES = frozenset(COLUMN_ORDER)
"""Attributes of every job that are columns of the hot table."""


def add_indexes(table: Table) -> None:
    """
    Add the library's indexes to the hot table.

    Names are versioned: autogenerate sees a new name, not a changed predicate.
    """
    job = table.c
    final = ", ".join(f"'{state}'" for state in JobState if state in FINAL)
    by_rank = (job.priority.desc(), job.lane, job.run_at, job.id)
    _index(
        "claim_v1",
        (job.queue, *by_rank),
        where="state = 'available' AND NOT ordered",
    )
    # Empty where nothing uses what they are for: such jobs pay for none of them.
    _index(
        "channels_v1",
        (job.queue, job.channel, *by_rank),
        where="state = 'available' AND NOT ordered AND channel <> ''",
    )
    _index(
        "heads_v1",
        (job.queue, job.channel, job.id),
        where=f"ordered AND state NOT IN ({final})",
    )
    _index(
        "ordered_v1",
        (job.queue, job.channel),
        where="ordered AND state = 'running'",
        unique=True,
    )
    _index(
        "blocked_v1",
        (job.queue, job.channel, job.id),
        where="ordered AND state = 'discarded'",
    )
    _index("holds_v1", (job.held_until,), where="state = 'held'")
    _index(
        "group_v1",
        (job.fingerprint,),
        where=f"fingerprint IS NOT NULL AND state NOT IN ({final})",
    )
    _index("due_v1", (job.run_at,), where="state IN ('scheduled', 'retryable')")
    _index("leases_v1", (job.leased_until,), where="state = 'running'")
    _index(
        "unique_v1",
        (job.unique_key,),
        where=f"unique_key IS NOT NULL AND state NOT IN ({final})",
        unique=True,
    )
    _index("finished_v1", (job.state, job.finished_at), where=f"state IN ({final})")


def _index(
    name: str, columns: tuple[Any, ...], *, where: str, unique: bool = False
) -> None:
    table = columns[-1].table
    predicate = text(where)
    # conv: a naming convention that goes by given names would change it.
    Index(
        conv(f"{table.name}_{name}_idx"),
        *columns,
        unique=unique,
        postgresql_where=predicate,
        sqlite_where=predicate,
    )


# A job row is updated two or three times in its short life. With half of the page free
# these updates of all its rows find room on it: PostgreSQL then logs only the changed
# columns, and cleans the page up itself. Vacuum has to come by row count, not by a part
# of the table: dead rows in front of the claim index are what slows a queue down.
STORAGE = {
    "fillfactor": 45,
    "autovacuum_vacuum_scale_factor": 0.01,
    "autovacuum_vacuum_threshold": 1000,
    "autovacuum_analyze_scale_factor": 0.02,
    "autovacuum_vacuum_cost_delay": 0,
}
"""Storage parameters of the hot table."""

# Table(postgresql_with=...) came with SQLAlchemy 2.1.
KNOWS_STORAGE = tuple(map(int, sqlalchemy.__version__.split(".")[:2])) >= (2, 1)


def is_hot(table: Table) -> bool:
    """Return whether *table*, or the one that it is a copy of, is a hot table."""
    return set(table.c.keys()) >= COLUMN_NAMES and "archived_at" not in table.c


def add_storage(table: Table) -> None:
    """Add the storage parameters; the user's own win, where SQLAlchemy has them."""
    if KNOWS_STORAGE:
        given = table.dialect_kwargs.get("postgresql_with") or {}
        table.dialect_kwargs["postgresql_with"] = {**STORAGE, **given}
        return
    setting = ", ".join(f"{name} = {value}" for name, value in STORAGE.items())
    change = DDL(  # type: ignore[no-untyped-call]
        f"ALTER TABLE %(fullname)s SET ({setting})"
    )
    event.listen(table, "after_create", change.execute_if(dialect="postgresql"))


def storage_of(table: Table) -> dict[str, str]:
    """Return the storage parameters of *table*; none unless it is a hot table."""
    if not is_hot(table):
        return {}
    given = table.dialect_kwargs.get("postgresql_with") if KNOWS_STORAGE else STORAGE
    return {name: str(value) for name, value in (given or {}).items()}


def storage_changes(
    table: Table, found: Mapping[str, str]
) -> dict[str, tuple[str, str | None]]:
    """
    Return the parameters that *table* has otherwise than *found*, with both values.

    Parameters that only the database has are its administrator's.
    """
    return {
        name: (value, found.get(name))
        for name, value in storage_of(table).items()
        if not _same_value(value, found.get(name))
    }


def _same_value(one: str, other: str | None) -> bool:
    try:
        return float(one) == float(other or "nan")
    except ValueError:
        return one.lower() == (other or "").lower()


def is_own_index(index: Index) -> bool:
    """Return whether the library itself declared *index*."""
    table = index.table
    if table is None or not is_hot(table):
        return False
    pattern = rf"{re.escape(table.name)}_[a-z]+_v\d+_idx"
    return re.fullmatch(pattern, str(index.name)) is not None
