"""The support tables of a root class, and the classes mapped to them."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    ClauseElement,
    Column,
    Double,
    Index,
    Integer,
    Table,
    Text,
    func,
    inspect,
    text,
)
from sqlalchemy.orm import Mapped, registry, validates
from sqlalchemy.sql.elements import conv

from sqla_jobs._core.limits import SETTINGS, checked_setting
from sqla_jobs._core.options import unknown
from sqla_jobs.models.columns import COLUMN_ORDER
from sqla_jobs.models.types import DURATION, JSON_VALUE, TIME, UUID


class SupportRow:
    """A row of a support table; written by the library, read by anybody."""

    def __init__(self, **values: Any) -> None:
        known = inspect(type(self)).column_attrs.keys()
        for name, value in values.items():
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__}: {unknown('keyword', name, known)}"
                )
            setattr(self, name, value)


class AttemptRow(SupportRow):
    """One attempt that ended; by default only those that did not complete."""

    job_id: Mapped[int]
    lease_token: Mapped[int]
    number: Mapped[int]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime]
    runner_id: Mapped[uuid.UUID | None]
    outcome: Mapped[str]
    error: Mapped[str | None]
    traceback: Mapped[str | None]


class QueueRow(SupportRow):
    """
    What operators set for one queue; a queue without a row has the defaults.

    `set_queue` writes it. Values are checked as they are assigned.

    Raises:
        TypeError: If a keyword is none of the settings.
        JobValueError: If a value cannot be used.
    """

    name: Mapped[str]
    paused: Mapped[bool]
    fair: Mapped[bool]
    backoff: Mapped[str | None]
    max_running: Mapped[int | None]
    max_running_per_channel: Mapped[int | None]
    rate_limit: Mapped[int | None]
    rate_period: Mapped[timedelta | None]
    tokens: Mapped[float | None]
    tokens_at: Mapped[datetime | None]
    on_discard: Mapped[str]

    @validates(*SETTINGS)
    def _check(self, name: str, value: Any) -> Any:
        if isinstance(value, ClauseElement):
            return value
        return checked_setting(type(self).__name__, name, value)


class IdempotencyRow(SupportRow):
    """Which job a key stands for in its queue, until *expires_at*."""

    queue: Mapped[str]
    key: Mapped[str]
    job_id: Mapped[int | None]
    expires_at: Mapped[datetime]


class ArchiveRow(SupportRow):
    """
    A final job that retention moved here.

    It has the library's columns of the job table; those of the application are in
    *own*, by name.
    """

    id: Mapped[int]
    kind: Mapped[str]
    queue: Mapped[str]
    state: Mapped[str]
    payload: Mapped[dict[str, Any]]
    result: Mapped[Any]
    reason: Mapped[str | None]
    finished_at: Mapped[datetime | None]
    own: Mapped[dict[str, Any]]
    archived_at: Mapped[datetime]


class RunnerRow(SupportRow):
    """A runner that is alive, or was at *seen_at*."""

    id: Mapped[uuid.UUID]
    name: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    queues: Mapped[dict[str, int] | None]
    kinds: Mapped[list[str]]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


Row = TypeVar("Row", bound=SupportRow)


def attempts_table(jobs: Table) -> Table:
    """Return the table of finished attempts that belongs to *jobs*."""
    return _table(
        jobs,
        "attempts",
        Column("job_id", BigInteger, primary_key=True, autoincrement=False),
        Column("lease_token", BigInteger, primary_key=True, autoincrement=False),
        Column("number", Integer, nullable=False),
        Column("started_at", TIME),
        Column("finished_at", TIME, nullable=False, server_default=func.now()),
        Column("runner_id", UUID),
        Column("outcome", Text, nullable=False),
        Column("error", Text),
        Column("traceback", Text),
    )


def queues_table(jobs: Table) -> Table:
    """Return the table of queue settings that belongs to *jobs*."""
    return _table(
        jobs,
        "queues",
        Column("name", Text, primary_key=True),
        Column("paused", Boolean, nullable=False, server_default=text("false")),
        Column("fair", Boolean, nullable=False, server_default=text("false")),
        Column("backoff", Text),
        Column("max_running", Integer),
        Column("max_running_per_channel", Integer),
        Column("rate_limit", Integer),
        Column("rate_period", DURATION),
        Column("tokens", Double),
        Column("tokens_at", TIME),
        Column("on_discard", Text, nullable=False, server_default=text("'skip'")),
    )


def idempotency_table(jobs: Table) -> Table:
    """Return the table of idempotency keys that belongs to *jobs*."""
    made = _table(
        jobs,
        "idempotency",
        Column("queue", Text, primary_key=True),
        Column("key", Text, primary_key=True),
        Column("job_id", BigInteger),
        Column("expires_at", TIME, nullable=False),
    )
    Index(conv(f"{jobs.name}_keys_v1_idx"), made.c.expires_at)
    return made


def archive_table(jobs: Table) -> Table:
    """Return the table of archived jobs that belongs to *jobs*."""
    made = _table(
        jobs,
        "archive",
        *(_archived(jobs.c[name]) for name in COLUMN_ORDER),
        Column("own", JSON_VALUE, nullable=False, server_default=text("'{}'")),
        Column("archived_at", TIME, nullable=False, server_default=func.now()),
    )
    Index(conv(f"{jobs.name}_archived_v1_idx"), made.c.archived_at)
    return made


def _archived(column: Column[Any]) -> Column[Any]:
    """Return a bare copy: values are only ever moved there."""
    key = column.primary_key
    return Column(
        column.name,
        column.type,
        primary_key=key,
        autoincrement=False if key else "auto",
        nullable=column.nullable and not key,
    )


def runners_table(jobs: Table) -> Table:
    """Return the table of runners that belongs to *jobs*."""
    return _table(
        jobs,
        "runners",
        Column("id", UUID, primary_key=True),
        Column("name", Text, nullable=False),
        Column("host", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("queues", JSON_VALUE),
        Column("kinds", JSON_VALUE, nullable=False, server_default=text("'[]'")),
        Column("started_at", TIME, nullable=False, server_default=func.now()),
        Column("seen_at", TIME, nullable=False, server_default=func.now()),
    )


def map_row(reg: registry, row: type[Row], table: Table, *, owner: type) -> type[Row]:
    """Return a subclass of *row* mapped to *table*, named after *owner*."""
    name = f"{owner.__name__}{row.__name__.removesuffix('Row')}"
    namespace = {"__module__": owner.__module__, "__doc__": row.__doc__}
    made: Any = type(name, (row,), namespace)
    reg.map_imperatively(made, table)
    return made  # type: ignore[no-any-return]


def _table(jobs: Table, suffix: str, *columns: Column[Any]) -> Table:
    name = f"{jobs.name}_{suffix}"
    return Table(name, jobs.metadata, *columns, schema=jobs.schema)
