"""What the job tables hold beside plain jobs: ordered and held ones, queues' rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Executable, exists, select
from sqlalchemy.orm import Session

from sqla_jobs._core.limits import QueueSettings
from sqla_jobs._core.states import FINAL
from sqla_jobs._dialects import JobDialect
from sqla_jobs._store.base import built_once, execute, literal_states
from sqla_jobs._store.take import is_managed
from sqla_jobs.models import JobTables


def feature_flags(
    tables: JobTables, *, backoffs: bool = False
) -> list[ColumnElement[Any]]:
    """
    Return whether there are live ordered jobs, and managed queues.

    Args:
        backoffs: Whether queues with a backoff count as well. Default False.
    """
    job = tables.table.alias("any_ordered").c
    live = job.state.not_in(literal_states(FINAL))
    ordered = exists().where(job.ordered, live)
    wanted = is_managed(tables)
    if backoffs:
        wanted |= tables.queues.c.backoff.is_not(None)
    managed = exists().select_from(tables.queues).where(wanted)
    return [ordered.label("has_ordered"), managed.label("has_queues")]


def read_queues(session: Session, tables: JobTables) -> Mapping[str, QueueSettings]:
    """Return the settings of all queues that have a row, by name."""
    rows = execute(session, tables, _reading, {})
    return {row.name: QueueSettings(**row._mapping) for row in rows}


@built_once
def _reading(tables: JobTables, _dialect: JobDialect) -> Executable:
    queue = tables.queues.c
    return select(*(queue[name] for name in QueueSettings.__dataclass_fields__))
