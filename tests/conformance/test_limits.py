"""Limits across all runners: how many run, how many begin, and who may not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import release, rescue, set_queue
from sqla_jobs._core.limits import Features
from sqla_jobs._core.memory import Memory
from sqla_jobs._core.subscriptions import Prefix
from sqla_jobs._dialects import dialect_of
from sqla_jobs._store.claim import claim, claim_jobs
from sqla_jobs._store.features import read_queues
from sqla_jobs._store.verbs import complete, fail
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    LEASE,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    at_once,
    change,
    fill,
    make_job,
    row_of,
    sent,
)

TABLES = job_tables(Job)
limit_queue = partial(set_queue, must_exist=False)


def taken(session: Session, **options: Any) -> Counter[str]:
    """Claim, and return how many jobs came of each queue."""
    options = {"now": NOW, "limit": 100, **options}
    return Counter(one.queue for one in claim(session, Job, **options))


def channels(session: Session, **options: Any) -> Counter[str]:
    """Claim, and return how many jobs came of each channel."""
    found = claim(session, Job, **{"now": NOW, "limit": 100, **options})
    return Counter(row_of(session, one.job_id)["channel"] for one in found)


def claim_mapped(session: Session, memory: Memory, **options: Any) -> list[Any]:
    """Claim as a runner does."""
    if "features" not in options:
        options["features"] = Features(queues=read_queues(session, TABLES))
    given: dict[str, Any] = {
        "kinds": ["work"],
        "queues": None,
        "limit": 100,
        "lease": LEASE,
        "runner_id": uuid4(),
        "memory": memory,
        **options,
    }
    return claim_jobs(session, TABLES, **given)


def test_no_more_run_than_the_limit(session: Session) -> None:
    """A limit counts what runs, wherever, and lets others go on."""
    limit_queue(session, Job, "slow", max_running=5)
    make_job(session, queue="slow", state="running")
    fill(session, 10, queue="slow")
    fill(session, 3, queue="other")

    assert taken(session) == {"slow": 4, "other": 3}
    assert taken(session) == {}


def test_slot_is_free_again_once_a_job_has_left_running(session: Session) -> None:
    """A settled, released or failed job makes room for one more."""
    limit_queue(session, Job, "slow", max_running=3)
    fill(session, 10, queue="slow")
    first, second, third = claim(session, Job, limit=10, now=NOW)

    complete(session, first)
    release(session, second)
    fail(session, third, "for once")

    assert taken(session) == {"slow": 3}


def test_crashed_jobs_count_until_they_are_rescued(session: Session) -> None:
    """An expired lease may still be held by somebody who is slow."""
    limit_queue(session, Job, "slow", max_running=1)
    fill(session, 2, queue="slow")
    assert taken(session) == {"slow": 1}
    later = NOW + 2 * LEASE

    assert taken(session, now=later) == {}
    rescue(session, Job, now=later)
    assert taken(session, now=later) == {"slow": 1}


def test_limit_lowered_below_what_runs_waits(session: Session) -> None:
    """What runs runs on; nothing begins until it is below the new limit."""
    limit_queue(session, Job, "slow", max_running=4)
    fill(session, 10, queue="slow")
    jobs = claim(session, Job, limit=10, now=NOW)
    limit_queue(session, Job, "slow", max_running=2)

    for job in jobs[:2]:
        assert taken(session) == {}
        complete(session, job)
    assert taken(session) == {}
    complete(session, jobs[2])
    assert taken(session) == {"slow": 1}


def test_removed_limit_is_gone(session: Session) -> None:
    """Without a limit the queue is as any other."""
    limit_queue(session, Job, "slow", max_running=1, rate_limit=1)
    fill(session, 10, queue="slow")
    assert taken(session) == {"slow": 1}

    limit_queue(session, Job, "slow", max_running=None, rate_limit=None)

    assert taken(session) == {"slow": 9}


def test_limit_per_channel(session: Session) -> None:
    """Each channel has slots of its own, the one without a name as well."""
    limit_queue(session, Job, "mail", max_running_per_channel=2)
    make_job(session, queue="mail", channel="a", state="running")
    for channel in ("a", "b", ""):
        fill(session, 5, queue="mail", channel=channel)

    assert channels(session) == {"a": 1, "b": 2, "": 2}
    assert channels(session) == {}


def test_both_limits_hold_together(session: Session) -> None:
    """The total holds as well where channels have room."""
    limit_queue(session, Job, "mail", max_running=3, max_running_per_channel=2)
    for channel in "abc":
        fill(session, 5, queue="mail", channel=channel)

    found = channels(session)

    assert found.total() == 3
    assert max(found.values()) <= 2
    assert channels(session) == {}


def test_ordered_jobs_count_as_others_do(session: Session) -> None:
    """Heads of ordered channels share the slots of their queue with unordered jobs."""
    limit_queue(session, Job, "mail", max_running=4, max_running_per_channel=1)
    for channel in "abcdef":
        make_job(session, queue="mail", channel=channel, ordered=True)
        make_job(session, queue="mail", channel=channel)
    assert taken(session) == {"mail": 4}
    assert taken(session) == {}
    rows = TABLES.table.c
    query = select(rows.channel).where(rows.state == "running")

    assert len(set(session.scalars(query))) == 4


def test_rate_is_a_token_bucket(session: Session) -> None:
    """As many as the rate begin at once, then one whenever a token is back."""
    limit_queue(session, Job, "api", rate_limit=5, rate_period=10 * SECOND)
    fill(session, 100, queue="api")

    begun = [taken(session, now=NOW + s * SECOND)["api"] for s in range(12)]

    assert begun == [5, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert taken(session, now=NOW + 100 * SECOND) == {"api": 5}


def test_rate_is_exact_over_many_claims(session: Session) -> None:
    """However the claims fall, 20 seconds have the burst and what flows back in it."""
    limit_queue(session, Job, "api", rate_limit=7, rate_period=3 * SECOND)
    fill(session, 500, queue="api")
    begun, step = 0, timedelta(milliseconds=333)
    for number in range(61):
        begun += taken(session, now=NOW + number * step, limit=4)["api"]

    # 60 x 0.333 s = 19.98 s, in which 46.62 tokens come back.
    assert begun == 7 + 46


def test_failed_attempts_use_tokens_too(session: Session) -> None:
    """A rate is about what begins: also a retry does, and nothing is given back."""
    limit_queue(session, Job, "api", rate_limit=2)
    make_job(session, queue="api")
    for _ in range(2):
        (job,) = claim(session, Job, now=NOW)
        release(session, job)

    assert taken(session) == {}


def test_clock_that_goes_back_gives_no_tokens(session: Session) -> None:
    """Tokens come back once for each moment, also after the clock was set back."""
    limit_queue(session, Job, "api", rate_limit=5)
    fill(session, 100, queue="api")
    later = NOW + 60 * SECOND

    assert taken(session, now=later) == {"api": 5}
    assert taken(session, now=NOW) == {}
    assert taken(session, now=later) == {}


@pytest.mark.parametrize("settings", [{}, {"fair": True}, {"max_running": 5}], ids=str)
@pytest.mark.parametrize("ordered", [False, True], ids=["any order", "ordered"])
def test_paused_queue_gives_nothing(
    session: Session, settings: dict[str, Any], ordered: bool
) -> None:
    """Pausing holds back plain, fair, limited and ordered jobs, and is over when it is.

    No attempt is used up by it.
    """
    job = make_job(session, queue="mail", ordered=ordered)
    make_job(session, queue="other")
    limit_queue(session, Job, "mail", paused=True, **settings)

    assert taken(session) == {"other": 1}
    assert row_of(session, job)["attempt"] == 0
    limit_queue(session, Job, "mail", paused=False)
    assert taken(session) == {"mail": 1}


SUBSCRIPTIONS: dict[str, tuple[list[Any], dict[str, int]]] = {
    "names": (["q1", "free"], {"q1": 3, "free": 6}),
    "another": (["free"], {"free": 6}),
    "pair": ([("q1", "a")], {"q1": 3}),
    "pair and name": ([("q1", "a"), "q1"], {"q1": 3}),
    "prefix": ([Prefix("q")], {"q1": 3, "q2": 2}),
    "all": ([Prefix("")], {"q1": 3, "q2": 2, "free": 6}),
}


@pytest.mark.parametrize("source", SUBSCRIPTIONS)
def test_limits_hold_for_every_way_to_subscribe(session: Session, source: str) -> None:
    """Names, pairs and prefixes get what the limits leave, and of no other queue."""
    limit_queue(session, Job, "q1", max_running=3)
    limit_queue(session, Job, "q2", max_running=2)
    for queue in ("q1", "q2", "free"):
        fill(session, 4, queue=queue, channel="a")
        fill(session, 2, queue=queue, channel="b")
    queues, expected = SUBSCRIPTIONS[source]

    assert taken(session, queues=queues) == expected


def test_slots_of_a_pair_bound_a_limited_queue(session: Session) -> None:
    """A runner's own slots hold where the queue has room, pair by pair."""
    limit_queue(session, Job, "q", max_running=50)
    for channel in "ab":
        fill(session, 9, queue="q", channel=channel)

    jobs = claim_mapped(session, Memory(), queues={("q", "a"): 2, "q": 3}, now=NOW)

    assert Counter(job.channel for job in jobs) == {"a": 2, "b": 3}


def test_queues_of_a_prefix_share_its_slots(session: Session) -> None:
    """Two limited queues under one prefix get no more than its slots together."""
    for name in ("t1", "t2"):
        limit_queue(session, Job, name, max_running=50)
        fill(session, 9, queue=name)

    jobs = claim_mapped(session, Memory(), queues={Prefix("t"): 4}, now=NOW)

    assert len(jobs) == 4


def test_priority_ranks_inside_a_limited_queue(session: Session) -> None:
    """The slots that there are go to the most urgent jobs."""
    limit_queue(session, Job, "slow", max_running=1)
    make_job(session, queue="slow")
    urgent = make_job(session, queue="slow", priority=5)

    (found,) = claim(session, Job, now=NOW, limit=10)

    assert found.job_id == urgent


# What it costs


def test_queues_without_limits_cost_no_statement(session: Session) -> None:
    """Rows that only pause, or state a backoff, leave the claim at one statement."""
    limit_queue(session, Job, "shut", paused=True)
    fill(session, 3)
    features = Features(queues=read_queues(session, TABLES))

    with sent(session) as seen:
        assert len(claim_mapped(session, Memory(), features=features)) == 3

    assert len(seen) == 1


def test_saturated_queue_rests(session: Session) -> None:
    """A runner whose limited queue is full asks about it once, not at each claim."""
    limit_queue(session, Job, "slow", max_running=1)
    fill(session, 3, queue="slow")
    memory = Memory()
    features = Features(queues=read_queues(session, TABLES))
    (job,) = claim_mapped(session, memory, features=features)
    assert memory.awake(["slow"], monotonic()) == ["slow"]
    assert claim_mapped(session, memory, features=features) == []
    assert memory._rests
    memory.rest("slow", monotonic(), 60.0)  # longer than this test may take

    with sent(session) as seen:
        assert claim_mapped(session, memory, features=features) == []
    assert len(seen) == 1  # the plain claim alone

    change(session, job.id, state="completed")
    memory.settled("slow", "", ordered=False)
    assert len(claim_mapped(session, memory, features=features)) == 1


def test_empty_bucket_says_when_to_look_again(session: Session) -> None:
    """A runner looks again when the next token is there, not a poll later."""
    limit_queue(session, Job, "api", rate_limit=2, rate_period=SECOND)
    fill(session, 3, queue="api")
    memory = Memory()
    assert len(claim_mapped(session, memory, now=NOW)) == 2
    memory.take_again()

    assert claim_mapped(session, memory, now=NOW) == []

    assert memory.take_again() == pytest.approx(0.5)


# Concurrency


class Gauge:
    """The most jobs that any claimer saw running, and the most per channel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.most = self.most_of_channel = self.seen = 0

    def look(self, session: Session) -> None:
        """Count what runs, seen by this transaction."""
        job = TABLES.table.c
        query = (
            select(job.channel, func.count())
            .where(job.state == "running")
            .group_by(job.channel)
        )
        found = {row[0]: row[1] for row in session.execute(query)}
        with self.lock:
            self.seen += 1
            self.most = max(self.most, sum(found.values()))
            self.most_of_channel = max([self.most_of_channel, *found.values()])


def work_off(
    sessions: sessionmaker[Session],
    gauge: Gauge,
    settle: Callable[[Session, Any], object] = complete,
) -> None:
    """Claim and settle until nothing is left."""
    jobs = TABLES.table.c
    left = select(func.count()).where(jobs.state.in_(["available", "running"]))
    while True:
        with sessions.begin() as session:
            found = claim(session, Job, limit=4, now=NOW)
            gauge.look(session)
        with sessions.begin() as session:
            for job in found:
                settle(session, job)
            if not found and not session.scalar(left):
                return


def test_six_claimers_never_exceed_a_limit(sessions: sessionmaker[Session]) -> None:
    """With a limit of 5 no claimer ever sees more run, and all jobs are done."""
    with sessions.begin() as session:
        limit_queue(session, Job, "slow", max_running=5)
        fill(session, 80, queue="slow")
    gauge = Gauge()

    at_once([partial(work_off, sessions, gauge)] * 6, timeout=120)

    assert 2 <= gauge.most <= 5


def test_six_claimers_keep_each_channel_below_its_limit(
    sessions: sessionmaker[Session],
) -> None:
    """With 2 per channel and 5 in all, neither is ever exceeded, ordered or not."""
    with sessions.begin() as session:
        limit_queue(session, Job, "slow", max_running=5, max_running_per_channel=2)
        for channel in "abcd":
            fill(session, 10, queue="slow", channel=channel)
            fill(session, 5, queue="slow", channel=channel, ordered=True)
    gauge = Gauge()

    at_once([partial(work_off, sessions, gauge)] * 6, timeout=120)

    assert 2 <= gauge.most <= 5
    assert gauge.most_of_channel <= 2


def test_six_claimers_share_the_tokens(sessions: sessionmaker[Session]) -> None:
    """At one moment exactly as many begin as the bucket holds, in every round."""
    with sessions.begin() as session:
        limit_queue(session, Job, "api", rate_limit=7)
        fill(session, 100, queue="api")

    def begin(now: Any) -> int:
        with sessions.begin() as session:
            return sum(taken(session, now=now, limit=3)["api"] for _ in range(3))

    for number in range(5):
        now = NOW + number * SECOND
        begun = sum(at_once([partial(begin, now)] * 6))
        while more := begin(now):
            begun += more
        assert begun == 7


def queues_of(session: Session, memory: Memory) -> Counter[str]:
    """Claim as a runner does, and return how many jobs came of each queue."""
    return Counter(job.queue for job in claim_mapped(session, memory, now=NOW))


def test_claimers_do_not_wait_for_each_other(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Whoever finds a queue taken by another claim goes on with others, and is told."""
    with sessions.begin() as session:
        limit_queue(session, Job, "slow", max_running=5)
        fill(session, 9, queue="slow")
        fill(session, 9, queue="other")
    memory = Memory()
    with sessions() as session:
        assert taken(session, queues=["slow"], limit=1) == {"slow": 1}

        assert elsewhere(queues_of, memory) == {"other": 9}
        assert memory.take_again() is not None
        session.commit()
    assert elsewhere(queues_of, memory) == {"slow": 4}


def test_older_snapshot_cannot_exceed_a_limit(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """REPEATABLE READ does not see what others took meanwhile: the claim fails."""
    elsewhere(limit_queue, Job, "slow", max_running=1)
    elsewhere(fill, 3, queue="slow")
    with sessions() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        session.execute(select(TABLES.queues)).all()  # its snapshot
        assert elsewhere(taken) == {"slow": 1}

        with pytest.raises(DBAPIError) as caught:
            claim(session, Job, now=NOW)

        assert dialect_of(session.connection()).is_conflict(caught.value)


def test_limits_hold_on_an_engine_of_repeatable_read(
    sessions: sessionmaker[Session], job_engine: Any, elsewhere: Elsewhere
) -> None:
    """Claimers that retry conflicts stay below the limit at any isolation level."""
    elsewhere(limit_queue, Job, "slow", max_running=2)
    elsewhere(fill, 30, queue="slow")
    strict = sessionmaker(
        job_engine.execution_options(isolation_level="REPEATABLE READ")
    )
    running = select(func.count()).where(TABLES.table.c.state == "running")

    def work() -> int:
        done = 0
        for _ in range(15):
            try:
                with strict.begin() as session:
                    session.execute(select(1)).all()
                    jobs = claim(session, Job, limit=2)
                with sessions.begin() as session:
                    assert session.scalars(running).one() <= 2
                    for job in jobs:
                        complete(session, job)
                    done += len(jobs)
            except DBAPIError as exc:
                if not dialect_of(job_engine).is_conflict(exc):
                    raise
        return done

    assert sum(at_once([work] * 4)) > 0
