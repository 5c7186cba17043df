"""What a requeue changes in its jobs: checked as the constructor's keywords are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Text, inspect, literal

from sqla_jobs._core.options import unknown
from sqla_jobs._core.payloads import dump
from sqla_jobs._core.states import JobState
from sqla_jobs._dialects import JobDialect
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables
from sqla_jobs.models.arg import dump_payload, shown_payload
from sqla_jobs.models.columns import COLUMN_NAMES
from sqla_jobs.models.construct import plan_of

CHANGEABLE = (
    *("queue", "channel", "priority", "run_at", "delay", "max_attempts", "backoff"),
    *("timeout", "lease", "tags", "meta", "fingerprint", "payload", "payload_bytes"),
)
"""Keywords of every job's constructor that a requeue may change."""


@dataclass(frozen=True, slots=True)
class Changes:
    """
    Checked changes; falsy if there are none.

    Args:
        names: As they were given.
        columns: New values by the columns' keys.
        parts: Payload keys as JSON text.
        replaces: Whether *parts* are the whole payload.
    """

    names: frozenset[str] = frozenset()
    columns: Mapping[str, Any] = field(default_factory=dict)
    delay: timedelta | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    replaces: bool = False

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def later(self) -> bool:
        """Whether the jobs become `scheduled`."""
        return self.delay is not None or "run_at" in self.columns

    def values(self, tables: JobTables, dialect: JobDialect) -> dict[Any, Any]:
        """Return what an UPDATE sets, by column."""
        job = tables.table.c
        values: dict[Any, Any] = {job[n]: value for n, value in self.columns.items()}
        if self.delay is not None:
            values[job.run_at] = dialect.now() + self.delay
        if self.later:
            values[job.state] = JobState.SCHEDULED.value
        if self.parts or self.replaces:
            values[job.payload] = self._payload(job.payload, dialect)
        return values

    def _payload(
        self, payload: ColumnElement[Any], dialect: JobDialect
    ) -> ColumnElement[Any]:
        made = {n: dialect.json(literal(t, Text())) for n, t in self.parts.items()}
        base = dialect.json(literal("{}", Text())) if self.replaces else payload
        return dialect.json_object(base, made) if made else base

    def check_rows(self, tables: JobTables, rows: Iterable[Any]) -> None:
        """
        Check that the changes fit the classes of the jobs that got them.

        Raises:
            PayloadError: If the new payload does not decode.
            JobValueError: If a job's unique key is made of what has changed.
        """
        found = {(row.kind, row.unique_key is not None) for row in rows if self}
        for kind, has_key in found:
            job_class = tables.kinds.get(kind)
            if job_class is not None:
                self._check_payload(job_class)
            if job_class is not None and has_key:
                self._check_unique(job_class)

    def _check_payload(self, job_class: type[Any]) -> None:
        payload = {name: json.loads(text) for name, text in self.parts.items()}
        for name, one in plan_of(job_class).args.items():
            if name in payload:
                one.codec.decode(payload[name], one.path)
            elif self.replaces:
                one._missing(payload)

    def _check_unique(self, job_class: type[Any]) -> None:
        unique = set(job_class.__job_options__.unique)
        changed = set(self.names) & unique
        if "args" in unique and (self.parts or self.replaces):
            changed = {"args"}
        if changed:
            raise JobValueError(
                f"changes= has a part of the unique key of {job_class.__name__}:"
                f" {', '.join(sorted(changed))}; enqueue a new job instead"
            )


def changes_of(job_class: type[Any], given: Mapping[str, Any]) -> Changes:
    """
    Return what *given* changes in jobs of *job_class*.

    Raises:
        JobValueError: If a name is unknown or a value cannot be used.
        PayloadError: If an `Arg` is of the wrong type, or the payload too large.
    """
    plan = plan_of(job_class)
    stand_in = _stand_in(job_class)
    payload = given.get("payload")
    if "payload" in given and not isinstance(payload, dict):
        shown = shown_payload(job_class, payload)
        raise JobValueError(f"changes= has payload={shown}, which must be a dict")
    parts = dict(payload or {})
    for name, value in given.items():
        if name in plan.args:
            parts[name] = plan.args[name].encode(value)
        elif name != "payload":
            _check_name(job_class, name)
            plan.setters[name](stand_in, name, value)
    path = f"{job_class.__name__}.payload"
    dump_payload(job_class, parts, path)
    row, columns = vars(stand_in), _own_columns(job_class)
    row.pop("state", None)
    return Changes(
        names=frozenset(given),
        delay=row.pop("_delay", None),
        columns={columns[name]: value for name, value in row.items()},
        parts={name: dump(value, path) for name, value in parts.items()},
        replaces="payload" in given,
    )


def _stand_in(job_class: type[Any]) -> Any:
    """Return what the constructor's setters fill instead of a job."""
    unset = dict.fromkeys(("_delay", "_hold_for", "_on_conflict"))
    options = {"__job_options__": job_class.__job_options__, **unset}
    return type(job_class.__name__, (), options)()


def _check_name(job_class: type[Any], name: str) -> None:
    own = [key for key in _own_columns(job_class) if key not in COLUMN_NAMES]
    if name in CHANGEABLE or name in own:
        return
    known = (*CHANGEABLE, *plan_of(job_class).args, *own)
    mapper = inspect(job_class)
    if name in COLUMN_NAMES or name in plan_of(job_class).setters:
        hint = "a requeue cannot change it"
        if name in mapper.relationships:
            hint = "a related object; give its foreign key"
        elif name in mapper.column_attrs and name not in COLUMN_NAMES:
            hint = f"a column of a table of its own; use update({job_class.__name__})"
        raise JobValueError(f"changes= has {name!r}: {hint}")
    raise JobValueError(f"{job_class.__name__}: {unknown('change', name, known)}")


def _own_columns(job_class: type[Any]) -> dict[str, str]:
    """Return the keys of the hot table's columns by attribute."""
    table = job_class.__jobs__.table
    attributes: Any = inspect(job_class).column_attrs
    found = {one.key: one.columns[-1] for one in attributes}
    return {key: column.key for key, column in found.items() if column.table is table}
