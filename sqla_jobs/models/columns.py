"""The columns, indexes and storage parameters of the hot table."""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Boolean,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.orm import MappedColumn, mapped_column

from sqla_jobs._core.options import DEFAULTS
from sqla_jobs._core.states import FINAL, JobState
from sqla_jobs.models.types import BYTES, DURATION, JSON_VALUE, TIME, UUID

OPTIONAL_TEXT = Text().evaluates_none()

# The key first, the user's own columns (sort order 0) last.
FIRST = -100


def job_columns() -> dict[str, MappedColumn[Any]]:
    """Return new columns of the hot table, by attribute name."""
    return {
        "id": _column(BigInteger, Identity(), primary_key=True),
        **_routing_columns(),
        **_lifecycle_columns(),
        **_value_columns(),
    }


COLUMN_NAMES: frozenset[str]


def _column(*args: Any, **kw: Any) -> MappedColumn[Any]:
    kw.setdefault("nullable", False)
    return mapped_column(*args, sort_order=FIRST, **kw)


def _nullable(type_: Any) -> MappedColumn[Any]:
    return _column(type_, nullable=True)


def _constant(type_: Any, value: str) -> MappedColumn[Any]:
    # Server defaults, so that rows written without the constructor work as well.
    return _column(type_, server_default=text(value))


def _routing_columns() -> dict[str, MappedColumn[Any]]:
    return {
        "kind": _column(Text),
        "queue": _constant(Text, f"'{DEFAULTS.queue}'"),
        "channel": _constant(Text, "''"),
        "priority": _constant(SmallInteger, str(DEFAULTS.priority)),
        "lane": _constant(SmallInteger, "0"),
        "state": _constant(Text, f"'{JobState.AVAILABLE}'"),
        "run_at": _column(TIME, server_default=func.now()),
    }


def _lifecycle_columns() -> dict[str, MappedColumn[Any]]:
    return {
        "attempt": _constant(Integer, "0"),
        "max_attempts": _constant(Integer, str(DEFAULTS.max_attempts)),
        "backoff": _constant(Text, f"'{DEFAULTS.backoff.spec()}'"),
        "timeout": _nullable(DURATION),
        "lease": _nullable(DURATION),
        "snoozes": _constant(Integer, "0"),
        "crashes": _constant(Integer, "0"),
        "lease_token": _constant(BigInteger, "0"),
        "leased_until": _nullable(TIME),
        "runner_id": _nullable(UUID),
    }


def _value_columns() -> dict[str, MappedColumn[Any]]:
    return {
        "payload": _constant(JSON_VALUE, "'{}'"),
        "payload_bytes": _nullable(BYTES),
        "checkpoint": _nullable(JSON_VALUE),
        "result": _nullable(JSON_VALUE),
        "progress": _nullable(JSON_VALUE),
        "unique_key": _nullable(OPTIONAL_TEXT),
        "fingerprint": _nullable(OPTIONAL_TEXT),
        "ordered": _constant(Boolean, "false"),
        "held_until": _nullable(TIME),
        "cancel_requested_at": _nullable(TIME),
        "reason": _nullable(OPTIONAL_TEXT),
        "last_error": _nullable(OPTIONAL_TEXT),
        "tags": _nullable(JSON_VALUE),
        "meta": _nullable(JSON_VALUE),
        "created_at": _column(TIME, server_default=func.now()),
        "started_at": _nullable(TIME),
        "finished_at": _nullable(TIME),
    }


COLUMN_NAMES = frozenset(job_columns())
"""Attributes of every job that are columns of the hot table."""


def add_indexes(table: Table) -> None:
    """
    Add the library's indexes to the hot table.

    Names are versioned: autogenerate sees a new name, not a changed predicate.
    """
    job = table.c
    final = ", ".join(f"'{state}'" for state in JobState if state in FINAL)
    _index(
        "claim_v1",
        (job.queue, job.priority.desc(), job.lane, job.run_at, job.id),
        where="state = 'available' AND NOT ordered",
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
    Index(
        f"{table.name}_{name}_idx",
        *columns,
        unique=unique,
        postgresql_where=predicate,
        sqlite_where=predicate,
    )


# A job row is updated two or three times in its short life. Free room on the page keeps
# these updates on it, and vacuum has to come by row count, not by a fifth of the table:
# dead rows in front of the claim index are what slows a queue down.
STORAGE = {
    "fillfactor": 70,
    "autovacuum_vacuum_scale_factor": 0.01,
    "autovacuum_vacuum_threshold": 1000,
    "autovacuum_analyze_scale_factor": 0.02,
    "autovacuum_vacuum_cost_delay": 0,
}
"""Storage parameters of the hot table."""


def add_storage(table: Table) -> None:
    """Add the storage parameters; the user's own win. Needs SQLAlchemy 2.1."""
    major, minor, *_ = sqlalchemy.__version__.split(".")
    if (int(major), int(minor)) >= (2, 1):
        given = table.dialect_kwargs.get("postgresql_with") or {}
        table.dialect_kwargs["postgresql_with"] = {**STORAGE, **given}
