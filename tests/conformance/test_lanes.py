"""The share of retried and rescued jobs, beside a flood of fresh ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs._core.states import Lane
from sqla_jobs._core.subscriptions import Prefix
from sqla_jobs._store.claim import claim_jobs
from sqla_jobs.models import job_tables
from tests.conformance.factories import LEASE, NOW, SECOND, Job, fill, make_job

TABLES = job_tables(Job)
SOURCES: dict[str, Sequence[Any] | None] = {
    "all": None,
    "names": ["default", "x"],
    "pairs": [("default", ""), ("x", "y")],
    "channel": [("default", "c")],
    "prefix": [Prefix("def")],
}


def lanes(session: Session, limit: int, late: int, **options: Any) -> list[int]:
    """Claim as a runner does and return the lanes, in order."""
    given: dict[str, Any] = {"queues": None, "kinds": ["work"], **options}
    jobs = claim_jobs(
        session,
        TABLES,
        limit=limit,
        late=late,
        lease=LEASE,
        runner_id=None,  # type: ignore[arg-type]
        now=NOW,
        **given,
    )
    return [job.lane for job in jobs]


@pytest.mark.parametrize("name", SOURCES)
def test_late_jobs_get_their_places(session: Session, name: str) -> None:
    """With two late places, two retried and two rescued jobs come beside the fresh."""
    channel = "c" if name == "channel" else ""
    fill(session, 40, channel=channel)
    for lane in (Lane.RETRIED, Lane.RESCUED):
        fill(session, 5, lane=lane, run_at=NOW - SECOND, channel=channel)
    sources = SOURCES[name]
    queues = None if sources is None else dict.fromkeys(sources, 10)

    found = lanes(session, 10, 2, queues=queues)

    assert Counter(found) == {0: 6, 1: 2, 2: 2}
    assert Counter(lanes(session, 10, 0, queues=queues)) == {0: 10}


def test_late_jobs_count_once(session: Session) -> None:
    """When fresh jobs run out, the late ones fill the claim, each of them once."""
    fill(session, 3)
    fill(session, 20, lane=Lane.RETRIED)

    assert Counter(lanes(session, 10, 2)) == {0: 3, 1: 7}


def test_late_places_are_of_the_whole_claim(session: Session) -> None:
    """Ten queues with retried jobs take no more of a claim than one does."""
    for number in range(10):
        fill(session, 20, queue=f"q{number}")
        fill(session, 20, queue=f"q{number}", lane=Lane.RETRIED)

    assert Counter(lanes(session, 10, 1)) == {0: 9, 1: 1}


def test_late_places_do_not_exceed_the_slots_of_a_queue(session: Session) -> None:
    """They are taken out of the queue's slots, not added to them."""
    fill(session, 20)
    fill(session, 20, lane=Lane.RESCUED)

    assert Counter(lanes(session, 10, 1, queues={"default": 3})) == {0: 2, 2: 1}


def test_priority_ranks_before_the_share(session: Session) -> None:
    """Only the top priority's late jobs get places: others wait for it as ever."""
    fill(session, 20, priority=5)
    fill(session, 20, priority=0, lane=Lane.RETRIED)

    assert Counter(lanes(session, 10, 3)) == {0: 10}


def test_top_priority_is_that_of_the_own_kinds(session: Session) -> None:
    """A kind that nobody here runs does not take the share away."""
    make_job(session, kind="unheard", priority=9)
    fill(session, 20)
    fill(session, 20, lane=Lane.RETRIED)

    assert Counter(lanes(session, 10, 1)) == {0: 9, 1: 1}


def test_locked_late_jobs_are_passed_over(sessions: sessionmaker[Session]) -> None:
    """A late job that somebody else is taking is skipped, and nobody waits."""
    with sessions.begin() as session:
        fill(session, 20)
        fill(session, 2, lane=Lane.RETRIED)

    with sessions() as one, sessions() as other:
        assert lanes(one, 5, 1).count(1) == 1
        assert lanes(other, 5, 1).count(1) == 1
        assert lanes(other, 5, 1).count(1) == 0
