"""What a root class knows about its tables and kinds, and how to ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2s
from typing import Any
from weakref import WeakSet

from sqlalchemy import Table

from sqla_jobs.errors import JobDefinitionError


@dataclass(frozen=True, eq=False)
class JobTables:
    """One root class with its tables; `kinds` maps kinds and aliases to classes."""

    root: type[Any]
    table: Table
    attempts: Table
    queues: Table
    runners: Table
    idempotency: Table
    archive: Table
    kinds: dict[str, type[Any]] = field(default_factory=dict)
    column_types: dict[tuple[Table, str], tuple[type[Any], Any]] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        _KNOWN.add(self)

    @property
    def support(self) -> tuple[Table, ...]:
        """The tables beside the hot one."""
        return (
            self.attempts,
            self.queues,
            self.runners,
            self.idempotency,
            self.archive,
        )

    def all_tables(self) -> list[Table]:
        """Return the hot table, the support tables and those of joined subclasses."""
        mapped = [m.local_table for m in self.root.__mapper__.self_and_descendants]
        found = dict.fromkeys([self.table, *self.support, *mapped])
        return [table for table in found if isinstance(table, Table)]

    @property
    def notify(self) -> bool:
        """Whether commits wake the runners of these tables, and these listen."""
        return self.root.__job_options__.notify  # type: ignore[no-any-return]

    @cached_property
    def channel(self) -> str:
        """The notification channel that wakes the runners of these tables."""
        return channel_name(self.table.fullname)

    def channel_in(self, options: Mapping[str, Any]) -> str:
        """
        Return the channel under the execution *options* of an engine or a connection.

        The tenants of ``schema_translate_map`` must not wake each other's runners.
        """
        schemas = options.get("schema_translate_map") or {}
        schema = schemas.get(self.table.schema, self.table.schema)
        if schema == self.table.schema:
            return self.channel
        return channel_name(
            f"{schema}.{self.table.name}" if schema else self.table.name
        )


_KNOWN: WeakSet[JobTables] = WeakSet()


def known_roots() -> list[type[Any]]:
    """Return the root classes made in this process, by the names of their tables."""
    found = sorted(_KNOWN, key=lambda tables: tables.table.fullname)
    return [tables.root for tables in found]


def channel_name(full_name: str) -> str:
    """Return the wake-up channel of the hot table *full_name*."""
    digest = blake2s(full_name.encode(), digest_size=8)
    return "sqla_jobs_" + digest.hexdigest()


def job_tables(job: Any) -> JobTables:
    """
    Return the tables of a root class, a job class or a job.

    Raises:
        JobDefinitionError: If *job* is none of these.
    """
    found = getattr(job, "__jobs__", None)
    if isinstance(found, JobTables):
        return found
    raise JobDefinitionError(
        f"{job!r} is not a job class; give a class made with JobMixin that has a"
        " __tablename__, or a subclass of one"
    )
