"""What operators set for queues: read it, change it."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any, Final

from sqlalchemy import Executable, Text, exists, or_, select
from sqlalchemy.orm import Session

from sqla_jobs._core.backoff import Backoff
from sqla_jobs._core.limits import RATE_PERIOD, QueueSettings, checked_setting
from sqla_jobs._core.options import unknown
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store import wake
from sqla_jobs._store.base import built_once, execute
from sqla_jobs._store.features import read_queues
from sqla_jobs._store.limits import has_jobs
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables


class Unset(Enum):
    """What a setting is that the call leaves as it was."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return self.name


UNSET: Final = Unset.UNSET


def set_queue(  # noqa: PLR0913 - one keyword per setting
    session: Session,
    job_class: type[Any],
    name: str,
    *,
    paused: bool | Unset = UNSET,
    fair: bool | Unset = UNSET,
    max_running: int | Unset | None = UNSET,
    max_running_per_channel: int | Unset | None = UNSET,
    rate_limit: int | Unset | None = UNSET,
    rate_period: timedelta | Unset = UNSET,
    backoff: Backoff | str | Unset | None = UNSET,
    on_discard: str | Unset = UNSET,
    must_exist: bool = True,
) -> QueueSettings:
    """
    Change settings of a queue and return all of them; does not commit.

    Only what is given changes, and None removes a limit. All runners keep to it as soon
    as it is committed: what runs runs on, and counts.

    Args:
        paused: Whether nobody may claim from the queue. A new queue's default is False.
        fair: Whether its channels are served in turn. Default False.
        max_running: Most jobs that may run at once, in all runners. Default no limit.
        max_running_per_channel: The same for each channel of the queue.
        rate_limit: Most jobs begun per *rate_period*, by a token bucket of that size:
            after a pause as many may begin at once.
        rate_period: Above zero. Default 1 second, whenever *rate_limit* is given.
        backoff: For jobs whose class states none.
        on_discard: What an ordered job that is discarded means to its channel: "skip"
            lets the next go on, "block" keeps it until the job is requeued or deleted.
            Default "skip".
        must_exist: Whether to refuse a name that no job class declares, and that has
            neither settings nor jobs that are ready or ordered: most likely a typo.
            Default True.

    Raises:
        JobValueError: If a value cannot be used, *rate_period* comes without
            *rate_limit*, or the queue is unknown.
        MissingTables: If the job tables are not there.
    """
    given: dict[str, Any] = {
        "paused": paused,
        "fair": fair,
        "max_running": max_running,
        "max_running_per_channel": max_running_per_channel,
        "rate_limit": rate_limit,
        "rate_period": rate_period,
        "backoff": backoff,
        "on_discard": on_discard,
    }
    changes = _checked(name, {k: v for k, v in given.items() if v is not UNSET})
    tables = job_tables(job_class)
    if must_exist:
        _check_known(session, tables, name)
    build = partial(_upserting, values=changes)
    execute(session, tables, build, {})
    wake.note(session, tables)  # what was held back may go on
    return queue_settings(session, job_class)[name]


def _checked(name: str, given: dict[str, Any]) -> dict[str, Any]:
    owner = f"queue {name!r}"
    checked_setting(owner, "name", name)
    values = {key: checked_setting(owner, key, value) for key, value in given.items()}
    if "rate_period" in values and values.get("rate_limit") is None:
        raise JobValueError(
            f"{owner}: rate_period={values['rate_period']!r} needs a rate_limit"
        )
    if "rate_limit" in values:
        period = values.get("rate_period") or RATE_PERIOD
        limited = values["rate_limit"] is not None
        values["rate_period"] = period if limited else None
        if not limited:
            values["tokens"] = None
    return {"name": name, **values}


def _upserting(
    tables: JobTables, dialect: JobDialect, values: dict[str, Any]
) -> Executable:
    return dialect.upsert(tables.queues, values, key="name", change=values)


def _check_known(session: Session, tables: JobTables, name: str) -> None:
    declared = {cls.__job_options__.queue for cls in tables.kinds.values()}
    if name in declared:
        return
    if execute(session, tables, _knowing, {"queue": name}).scalar_one():
        return
    known = declared | read_queues(session, tables).keys()
    raise JobValueError(
        f"{unknown('queue', name, known)}: no job class declares it, and it has neither"
        " settings nor ready jobs; must_exist=False sets it up beforehand"
    )


@built_once
def _knowing(tables: JobTables, _dialect: JobDialect) -> Executable:
    name = bind("queue", Text())
    has_row = exists().where(tables.queues.c.name == name)
    return select(or_(has_row, has_jobs(tables, name)))


def queue_settings(session: Session, job_class: type[Any]) -> dict[str, QueueSettings]:
    """
    Return the settings of all queues that have some, by name.

    A queue that is not in the answer has the defaults of `QueueSettings`.

    Raises:
        MissingTables: If the job tables are not there.
    """
    return dict(read_queues(session, job_tables(job_class)))
