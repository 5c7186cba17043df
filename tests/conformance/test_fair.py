"""Fair queues: their channels are served in turn, however many jobs each has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs._core.subscriptions import Prefix
from sqla_jobs._store import fair
from sqla_jobs._store.claim import claim
from sqla_jobs._store.fair import FairAsk, claim_fair
from sqla_jobs._store.take import Ask
from sqla_jobs.models import job_tables
from tests.conformance.factories import LEASE, NOW, SECOND, Job, at_once, fill, make_job

TABLES = job_tables(Job)


@pytest.fixture(autouse=True)
def _from_the_start() -> Iterator[None]:
    """Let every test visit the first channel first."""
    fair._cursors.clear()
    yield
    fair._cursors.clear()


@pytest.fixture
def q(session: Session) -> Session:
    """Return a session whose queue "q" is fair."""
    make_fair(session, "q")
    return session


def make_fair(session: Session, *names: str) -> None:
    """Make queues fair."""
    for name in names:
        session.execute(insert(TABLES.queues).values(name=name, fair=True))


def took(session: Session, limit: int, **options: Any) -> Counter[str]:
    """Claim and count the jobs by channel."""
    found = claim(session, Job, limit=limit, **{"now": NOW, **options})
    jobs = [session.get_one(Job, one.job_id) for one in found]
    return Counter(job.channel for job in jobs)


def by_ask(session: Session, limit: int, **asks: FairAsk) -> Counter[tuple[str, str]]:
    """Claim from fair queues alone and count by queue and channel."""
    ask = Ask(limit=limit, lease=LEASE, now=NOW, entities=True)
    jobs = claim_fair(session, TABLES, ask, asks)
    return Counter((job.queue, job.channel) for job in jobs)


@pytest.mark.parametrize(
    ("small", "later"),
    # Those without a channel are looked for among the first 1,000 of the queue.
    [("a", False), ("z", False), ("", False), ("a", True), ("z", True)],
)
def test_small_channel_is_in_the_first_two_batches(
    q: Session, small: str, later: bool
) -> None:
    """Of 1,000 jobs beside 3, also when the three come last, 20 at a time."""
    at = NOW + SECOND if later else NOW - SECOND
    fill(q, 1_000, queue="q", channel="m")
    fill(q, 3, queue="q", channel=small, run_at=at)

    both = took(q, 20) + took(q, 20)

    assert both[small] == 3
    assert both["m"] >= 17


def test_full_batch_where_one_channel_has_all(q: Session) -> None:
    """A single channel fills a claim, and so do jobs without any."""
    fill(q, 50, queue="q", channel="m")
    assert took(q, 20) == {"m": 20}

    make_fair(q, "blank")
    fill(q, 50, queue="blank")
    assert took(q, 20, queues=["blank"]) == {"": 20}


def test_channels_are_visited_in_turn(q: Session) -> None:
    """One job at a time, every channel is served once before the first comes again."""
    names = [f"c{number}" for number in range(7)]
    for name in names:
        fill(q, 3, queue="q", channel=name)
    fill(q, 3, queue="q")

    rounds = [[took(q, 1) for _ in range(8)] for _ in range(3)]

    for one in rounds:
        assert sum(one, Counter()) == Counter([*names, ""])
    assert not took(q, 1)


def test_more_channels_than_places_take_turns(q: Session) -> None:
    """Claims of 4 out of 10 channels serve all of them in three claims."""
    for number in range(10):
        fill(q, 100, queue="q", channel=f"c{number}", priority=number)

    found = [took(q, 4) for _ in range(5)]

    assert sum(found[:3], Counter()).keys() == {f"c{n}" for n in range(10)}
    assert set(sum(found, Counter()).values()) == {2}


def test_order_inside_a_channel_is_that_of_any_queue(q: Session) -> None:
    """Priority, lane, time and id rank the jobs of one channel."""
    last = make_job(q, queue="q", channel="c", lane=1)
    second = make_job(q, queue="q", channel="c")
    oldest = make_job(q, queue="q", channel="c", run_at=NOW - SECOND)
    first = make_job(q, queue="q", channel="c", priority=1, lane=2)

    ids = [claim(q, Job, now=NOW)[0].job_id for _ in range(4)]

    assert ids == [first, oldest, second, last]


def test_fair_queue_shares_a_claim_with_others(q: Session) -> None:
    """Plain queues keep their place beside fair ones, and two fair ones share."""
    make_fair(q, "r")
    for queue in ("q", "r"):
        fill(q, 100, queue=queue, channel="c")

    assert by_ask(q, 10, q=FairAsk(10), r=FairAsk(10)) == {
        ("q", "c"): 5,
        ("r", "c"): 5,
    }
    assert by_ask(q, 10, q=FairAsk(2), r=FairAsk(10)) == {("q", "c"): 2, ("r", "c"): 8}


def test_slots_of_a_fair_queue_hold_over_its_channels(q: Session) -> None:
    """More channels than slots do not make more slots."""
    for channel in "abcdef":
        fill(q, 3, queue="q", channel=channel)

    assert by_ask(q, 10, q=FairAsk(2)) == {("q", "a"): 1, ("q", "b"): 1}
    assert by_ask(q, 10, q=FairAsk(2)) == {("q", "c"): 1, ("q", "d"): 1}


@pytest.mark.parametrize("limit", [5, 100])
def test_channels_at_their_limit_are_passed_over(q: Session, limit: int) -> None:
    """A claim takes what room a channel has, and visits the next instead."""
    for number in range(50):
        fill(q, 9, queue="q", channel=f"c{number:02}")
    running = {f"c{number:02}": 3 for number in range(40)} | {"c41": 2}
    asked = FairAsk(limit, per_channel=3, running=running)

    found = by_ask(q, limit, q=asked)

    if limit == 5:
        assert found == {("q", f"c{number}"): 1 for number in range(40, 45)}
    else:
        assert found.keys() == {("q", f"c{number}") for number in range(40, 50)}
        assert found.pop(("q", "c41")) == 1
        assert set(found.values()) == {3}


@pytest.mark.parametrize(
    ("queues", "expected"),
    [
        (["other"], set()),
        ([("q", "a")], {"a"}),
        ([("q", "a"), ("q", "")], {"a", ""}),
        ([Prefix("q")], {"", "a", "b", "c"}),
        (["q", ("q", "b")], {"", "a", "b", "c"}),
        ([("q", "nobody")], set()),
    ],
)
def test_subscriptions_hold_in_fair_queues(
    q: Session, queues: Sequence[Any], expected: set[str]
) -> None:
    """Pairs, names and prefixes mean the same there."""
    for channel in ("", "a", "b", "c"):
        fill(q, 3, queue="q", channel=channel)

    assert took(q, 40, queues=queues) == Counter(dict.fromkeys(expected, 3))


def test_slots_of_subscriptions_hold_in_fair_queues(q: Session) -> None:
    """What is subscribed to on its own costs the rest nothing."""
    make_fair(q, "q2")
    for queue in ("q", "q2"):
        for channel in ("a", "b"):
            fill(q, 50, queue=queue, channel=channel)
    slots: dict[Any, int] = {("q", "a"): 2, Prefix("q"): 5}
    ask = Ask(limit=40, lease=LEASE, queues=slots, now=NOW, entities=True)

    jobs = claim_fair(q, TABLES, ask, {"q": FairAsk(40), "q2": FairAsk(40)})

    found = Counter((job.queue, job.channel) for job in jobs)
    assert found["q", "a"] == 2
    assert found["q", "b"] + found["q2", "a"] + found["q2", "b"] == 5


def test_foreign_kinds_do_not_hide_others(q: Session) -> None:
    """Channels whose jobs nobody here runs are passed over in the same claim."""
    for number in range(12):
        fill(q, 2, queue="q", channel=f"c{number:02}", kind="unheard")
    fill(q, 2, queue="q", channel="z")

    assert took(q, 1, kinds=["work"]) == {"z": 1}
    assert took(q, 1, kinds=["work"]) == {"z": 1}
    assert took(q, 1, kinds=["work"]) == {}


def test_paused_fair_queue_is_skipped(session: Session) -> None:
    """A pause holds a fair queue as any other, also before a sweep tells of it."""
    session.execute(insert(TABLES.queues).values(name="q", fair=True, paused=True))
    fill(session, 3, queue="q", channel="c")

    assert took(session, 5) == {}
    assert by_ask(session, 5, q=FairAsk(5)) == {}


def test_fair_claim_takes_one_suspect_at_most(q: Session) -> None:
    """Of jobs that crashed their runner twice one comes with a claim."""
    for channel in ("", "a", "b"):
        fill(q, 3, queue="q", channel=channel, crashes=2)

    assert sum(took(q, 9).values()) == 1


def test_small_channel_is_soon_served_with_many_claimers(
    sessions: sessionmaker[Session],
) -> None:
    """Eight that claim at once: the 3 beside 1,000 are in each one's first batches."""
    with sessions.begin() as session:
        make_fair(session, "q")
        fill(session, 1_000, queue="q", channel="m")
        fill(session, 3, queue="q", channel="z", run_at=NOW + SECOND)

    def work() -> list[Counter[str]]:
        found = []
        for _ in range(2):
            with sessions.begin() as session:
                found.append(took(session, 20))
        return found

    batches = [batch for one in at_once([work] * 8) for batch in one]

    assert sum(batches, Counter())["z"] == 3
    assert all(sum(batch.values()) >= 10 for batch in batches)


def test_every_job_of_a_fair_queue_is_taken_once(
    sessions: sessionmaker[Session],
) -> None:
    """Concurrent claims of many channels take all jobs, and none of them twice."""
    with sessions.begin() as session:
        make_fair(session, "q")
        for number in range(30):
            fill(session, number + 1, queue="q", channel=f"c{number:02}")
        fill(session, 20, queue="q")

    def work() -> list[int]:
        ids: list[int] = []
        for _ in range(200):
            with sessions.begin() as session:
                found = claim(session, Job, limit=7, now=NOW)
            ids += [one.job_id for one in found]
            if not found:
                break
        return ids

    ids = [one for each in at_once([work] * 4) for one in each]

    with sessions.begin() as session:
        ids += [one.job_id for one in claim(session, Job, limit=100, now=NOW)]
    assert len(ids) == len(set(ids)) == 465 + 20
