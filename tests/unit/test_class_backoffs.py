"""Whether a job's class states its backoff, or leaves it to the queue and the root."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import JobMixin, constant, custom, exponential
from sqla_jobs._core.backoff import DEFAULT_BACKOFF
from sqla_jobs.models.backoffs import backoff_for

MINUTE = constant(timedelta(minutes=1))
OF_QUEUE = constant(timedelta(days=1))


class Base(DeclarativeBase):
    """The application's."""


class Job(JobMixin, Base, backoff=MINUTE):
    """The root, with a backoff."""

    __tablename__ = "class_backoff_jobs"


class Silent(Job):
    """Leaves it to others."""


class Same(Job, backoff=MINUTE):
    """States what the root does."""


class Template(Job, backoff=MINUTE):
    """States it for the classes below."""

    __abstract__ = True


class Below(Template):
    """States it by its template."""


class Computed(Job, backoff=custom(lambda attempt: timedelta(hours=attempt))):
    """Computes it."""


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("silent", MINUTE.spec(), OF_QUEUE),
        ("same", MINUTE.spec(), MINUTE),
        ("below", MINUTE.spec(), MINUTE),
        ("computed", "custom", Computed.__job_options__.backoff),
        ("silent", exponential().spec(), exponential()),
        ("not_mapped", MINUTE.spec(), OF_QUEUE),
        ("not_mapped", exponential().spec(), exponential()),
        ("silent", "nonsense(1)", DEFAULT_BACKOFF),
    ],
)
def test_queue_decides_where_nobody_below_the_root_does(
    kind: str, spec: str, expected: Any
) -> None:
    """A backoff in the class, its template or the row is a statement of its own."""
    assert backoff_for(Job.__jobs__, kind, spec, OF_QUEUE.spec()) == expected


def test_without_a_queues_backoff_the_row_decides() -> None:
    """As it was stored when the job was enqueued; nonsense means the default."""
    assert backoff_for(Job.__jobs__, "silent", MINUTE.spec()) == MINUTE
    assert backoff_for(Job.__jobs__, "silent", "nonsense(1)") == DEFAULT_BACKOFF
    assert backoff_for(Job.__jobs__, "silent", MINUTE.spec(), "nonsense(1)") == (
        DEFAULT_BACKOFF
    )
