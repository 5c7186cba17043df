"""Counts per queue and state are exact up to a limit, and say where they stop."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import JobCount, JobState, JobValueError, counts, exists
from sqla_jobs._core.states import FINAL, LIVE
from tests.conformance.factories import make_job, sent
from tests.conformance.operators.kit import Job, Other, Send, Tick, Urgent


def told(session: Session, job_class: Any = Job, **options: Any) -> dict[Any, Any]:
    """Return the counts by queue and state; a cut one as text."""
    found = counts(session, job_class, **options)
    return {
        (one.queue, one.state): f"{one.count}+" if one.cut else one.count
        for one in found
    }


def test_every_state_is_counted_per_queue(session: Session) -> None:
    """Below the limit all counts are exact, of ordered jobs too."""
    expected: dict[Any, int] = {}
    for number, state in enumerate(JobState, 1):
        for queue in ("a", "b"):
            for ordered in (False, True):
                times = number if queue == "a" else 1
                for channel in range(times):
                    make_job(
                        session,
                        Send,
                        state=state,
                        queue=queue,
                        ordered=ordered,
                        channel=str(channel),
                    )
                expected[queue, state] = expected.get((queue, state), 0) + times

    with sent(session) as statements:
        assert told(session) == expected

    assert len(statements) == 1
    assert list(told(session)) == sorted(
        expected, key=lambda key: (key[0], list(JobState).index(key[1]))
    )


def test_counts_of_nothing(session: Session) -> None:
    """An empty table has no counts; nor have queues that are not there."""
    assert counts(session, Job) == []
    assert counts(session, Job, queues=["a"]) == []
    assert counts(session, Job, queues=[]) == []


def test_counts_are_of_given_queues(session: Session) -> None:
    """Others are left out."""
    for queue in ("a", "b", "c"):
        make_job(session, Send, queue=queue)
        make_job(session, Send, queue=queue, state="running")

    assert told(session, queues=["c", "a", "x"]) == {
        (queue, state): 1 for queue in "ac" for state in ("running", "available")
    }


@pytest.mark.parametrize("ordered", [False, True])
def test_available_jobs_are_cut_per_queue(session: Session, ordered: bool) -> None:
    """One long queue does not hide what the others have."""
    for queue, number in (("long", 5), ("even", 3), ("short", 1)):
        for _ in range(number):
            make_job(session, Send, queue=queue, ordered=ordered)

    assert told(session, at_most=3) == {
        ("long", "available"): "3+",
        ("even", "available"): 3,
        ("short", "available"): 1,
    }


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.AVAILABLE}))
def test_other_states_are_cut_over_all_queues(
    session: Session, state: JobState
) -> None:
    """A queue whose jobs may lie beyond the limit is told as uncertain, never as 0."""
    for queue in ("a", "a", "a", "z"):
        make_job(session, Send, queue=queue, state=state)
    make_job(session, Send, queue="z")

    found = told(session, queues=["a", "z", "none"], at_most=3)

    lacking = {("a", "available"): None, ("none", "available"): None}
    assert found.pop(("z", "available")) == 1
    assert not found.keys() & lacking.keys()
    cut = {key: value for key, value in found.items() if key[1] == state}
    assert {key[0] for key in cut} == {"a", "z", "none"}
    assert all(isinstance(value, str) for value in cut.values())
    assert sum(int(value[:-1]) for value in cut.values()) <= 4
    assert told(session, at_most=4)["a", state] == 3


def test_cut_says_at_least(session: Session) -> None:
    """The count of a cut one is no higher than the limit, nor than the truth."""
    for _ in range(10):
        make_job(session, Send, state="completed")

    assert counts(session, Job, at_most=4) == [
        JobCount("default", JobState.COMPLETED, 4, cut=True)
    ]


def test_counts_of_a_class(session: Session) -> None:
    """Its kinds, and those below it."""
    make_job(session, Send)
    make_job(session, Urgent, state="completed")
    make_job(session, Job, kind="elsewhere")

    assert told(session, Send) == {
        ("default", "available"): 1,
        ("default", "completed"): 1,
    }
    assert told(session, Urgent) == {("default", "completed"): 1}
    assert told(session, Send, at_most=1) == {
        ("default", "available"): "1+",
        ("default", "completed"): 1,
    }


def test_counts_are_of_one_root(session: Session) -> None:
    """The other root's jobs are not mixed in."""
    make_job(session, Tick)

    assert counts(session, Job) == []
    assert told(session, Other) == {("default", "available"): 1}


@pytest.mark.parametrize("at_most", [0, -1, True, 2.5, 1_000_001, None])
def test_bad_limit_is_refused(session: Session, at_most: Any) -> None:
    """The error names the range."""
    with pytest.raises(JobValueError, match=r"at_most must be 1 to 1000000, got"):
        counts(session, Job, at_most=at_most)


def test_one_text_is_no_list_of_queues(session: Session) -> None:
    """Its letters would be the names."""
    with pytest.raises(JobValueError, match="queues must be a list of names"):
        counts(session, Job, queues="mail")


@pytest.mark.parametrize("state", sorted(LIVE | FINAL))
def test_job_exists_in_any_state(session: Session, state: JobState) -> None:
    """As long as its row is in the job table, for its class and those above."""
    job = make_job(session, Send, state=state)

    assert exists(session, Job, job)
    assert exists(session, Send, job)
    assert not exists(session, Urgent, job)
    assert not exists(session, Other, job)
    assert not exists(session, Job, job + 1)
    with pytest.raises(JobValueError, match="ids must be"):
        exists(session, Job, "1")  # type: ignore[arg-type]
