"""The settings of queues: what may be set, by whom it is read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    JobValueError,
    QueueSettings,
    constant,
    queue_settings,
    set_queue,
)
from tests.conformance.factories import SECOND, Elsewhere, Job, fill, make_job


def test_only_what_is_given_changes(session: Session) -> None:
    """Each call keeps the other settings; None removes a limit."""
    assert queue_settings(session, Job) == {}

    set_queue(session, Job, "default", max_running=5, backoff=constant(5 * SECOND))
    set_queue(session, Job, "default", paused=True, on_discard="block")
    found = set_queue(session, Job, "default", max_running=None, fair=True)

    expected = QueueSettings(
        "default", paused=True, fair=True, backoff="constant(5)", on_discard="block"
    )
    assert found == expected
    assert queue_settings(session, Job) == {"default": expected}


def test_rate_and_period_are_one_setting(session: Session) -> None:
    """A rate has a period, of 1 second unless given, and both go together."""
    found = set_queue(session, Job, "default", rate_limit=5)
    assert (found.rate_limit, found.rate_period) == (5, SECOND)
    minute = timedelta(minutes=1)
    found = set_queue(session, Job, "default", rate_limit=5, rate_period=minute)
    assert found.rate_period == minute
    found = set_queue(session, Job, "default", paused=True)
    assert found.rate_period == minute
    found = set_queue(session, Job, "default", rate_limit=None)
    assert (found.rate_limit, found.rate_period) == (None, None)


def test_setting_a_rate_again_fills_no_bucket(session: Session) -> None:
    """A deployment that sets the same rate again does not let another burst through."""
    set_queue(session, Job, "default", rate_limit=5)
    session.get_one(Job.Queue, "default").tokens = 0.25
    session.flush()
    set_queue(session, Job, "default", rate_limit=5)

    assert session.scalar(select(Job.Queue.tokens)) == 0.25


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_running": 0}, "max_running=0 must be an integer from 1"),
    ({"rate_limit": -5}, "rate_limit=-5 must be an integer from 1"),
    ({"rate_period": SECOND}, "rate_period=.* needs a rate_limit"),
    ({"rate_period": SECOND, "rate_limit": None}, "needs a rate_limit"),
    ({"on_discard": "stop"}, "must be 'skip' or 'block'"),
]


@pytest.mark.parametrize(("settings", "text"), BAD, ids=str)
def test_bad_setting_writes_nothing(
    session: Session, settings: dict[str, Any], text: str
) -> None:
    """What cannot be used is refused before any statement."""
    with pytest.raises(JobValueError, match=f"^queue 'default': .*{text}"):
        set_queue(session, Job, "default", **settings)

    assert queue_settings(session, Job) == {}


@pytest.mark.parametrize("name", ["", "x" * 201, "a\0b", "\ud800", None], ids=repr)
def test_impossible_name_is_refused(session: Session, name: Any) -> None:
    """A name that no job can have is refused, also beforehand."""
    with pytest.raises(JobValueError, match="name="):
        set_queue(session, Job, name, must_exist=False)


def test_unknown_queue_is_refused_with_the_likely_name(session: Session) -> None:
    """A queue that nobody declares or uses is a typo, unless must_exist=False."""
    with pytest.raises(JobValueError, match="'defualt'; did you mean 'default'"):
        set_queue(session, Job, "defualt", paused=True)

    assert set_queue(session, Job, "defualt", paused=True, must_exist=False).paused
    assert set_queue(session, Job, "defualt", paused=False).paused is False


@pytest.mark.parametrize("ordered", [False, True], ids=["any order", "ordered"])
def test_queue_of_waiting_jobs_is_known(session: Session, ordered: bool) -> None:
    """A queue that jobs wait in exists, whoever declares it."""
    make_job(session, queue="tenant", ordered=ordered)

    assert set_queue(session, Job, "tenant", max_running=1).max_running == 1


def test_settings_share_the_fate_of_the_transaction(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Nothing is committed, and others see it when the caller commits."""
    with sessions() as session:
        set_queue(session, Job, "default", paused=True)
        assert elsewhere(queue_settings, Job) == {}
        session.commit()

    assert elsewhere(queue_settings, Job)["default"].paused


def test_mapped_row_is_checked_as_well(session: Session) -> None:
    """Job.Queue refuses unknown keywords and bad values, made or changed."""
    with pytest.raises(TypeError, match="'max_runing'; did you mean 'max_running'"):
        Job.Queue(name="default", max_runing=5)
    with pytest.raises(JobValueError, match="rate_limit=0 must be"):
        Job.Queue(name="default", rate_limit=0)
    row = Job.Queue(name="default", backoff=constant(SECOND))
    with pytest.raises(JobValueError, match="on_discard='no' must be"):
        row.on_discard = "no"
    row.max_running = func.least(3, 5)
    session.add(row)
    session.flush()

    found = queue_settings(session, Job)["default"]
    assert (found.max_running, found.backoff) == (3, "constant(1)")


def test_queue_of_scheduled_jobs_alone_is_not_known(session: Session) -> None:
    """No index has delayed jobs by queue: the error says how to go on."""
    fill(session, 3, queue="later", state="scheduled")

    with pytest.raises(JobValueError, match="must_exist=False"):
        set_queue(session, Job, "later", max_running=1)
