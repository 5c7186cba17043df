"""Claiming ordered jobs: one at a time in each channel, in send order."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobState, request_cancel, requeue, set_queue
from sqla_jobs._core.limits import Features
from sqla_jobs._core.memory import Memory
from sqla_jobs._core.subscriptions import Prefix
from sqla_jobs._store.claim import claim, claim_jobs
from sqla_jobs._store.head_rows import lease_heads
from sqla_jobs._store.heads import _shared_memory
from sqla_jobs._store.take import Ask
from sqla_jobs._store.verbs import complete, discard, fail
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    LEASE,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    Other,
    at_once,
    change,
    claim_one,
    fill,
    make_job,
    row_of,
    sent,
)

TABLES = job_tables(Job)


@pytest.fixture(autouse=True)
def _forgetful() -> None:
    """Let each test begin with claims that remember nothing."""
    _shared_memory.cache_clear()


def send(session: Session, count: int = 1, **columns: Any) -> list[int]:
    """Insert ordered jobs of one channel, and return their ids."""
    columns = {"channel": "a", "ordered": True, **columns}
    return [make_job(session, **columns) for _ in range(count)]


def taken(session: Session, **options: Any) -> list[int]:
    """Return the ids of one claim, sorted."""
    options = {"now": NOW, "limit": 100, **options}
    return sorted(c.job_id for c in claim(session, Job, **options))


def test_only_heads_are_claimed(session: Session) -> None:
    """Of each queue and channel the lowest id is taken, and it holds the rest."""
    first, second = send(session, 2)
    (other,) = send(session, channel="b")
    (elsewhere,) = send(session, queue="mail")
    (blank,) = send(session, channel="")

    assert taken(session) == sorted([first, other, elsewhere, blank])
    assert taken(session) == []
    change(session, first, state="completed")
    assert taken(session) == [second]


def test_order_ignores_priority_lane_and_time(session: Session) -> None:
    """An ordered channel goes by id, whatever else claims go by."""
    first, _ = send(session, 2, priority=-5, lane=2, run_at=NOW)
    send(session, priority=100, run_at=NOW - SECOND)

    assert taken(session) == [first]


@pytest.mark.parametrize("state", ["scheduled", "retryable", "held", "running"])
def test_waiting_head_holds_the_rest(session: Session, state: str) -> None:
    """A head that is delayed, retrying, held or running keeps its channel."""
    (head,) = send(session, state=state)
    (successor,) = send(session)

    assert taken(session) == []
    change(session, head, state="cancelled")
    assert taken(session) == [successor]


@pytest.mark.parametrize("state", ["completed", "cancelled", "discarded"])
def test_final_head_frees_its_successor(session: Session, state: str) -> None:
    """Whatever a job ended in, by default the next goes on."""
    send(session, state=state)
    (successor,) = send(session)

    assert taken(session) == [successor]


def test_unordered_jobs_do_not_care(session: Session) -> None:
    """Unordered jobs of the channel neither wait for ordered ones nor hold them."""
    ordered, _ = send(session, 2)
    others = [make_job(session, channel="a") for _ in range(3)]

    assert taken(session) == sorted([ordered, *others])


def test_cancelled_job_in_the_middle_is_passed_over(session: Session) -> None:
    """A job that is cancelled while it waits leaves no gap."""
    first, middle, last = send(session, 3)
    request_cancel(session, Job, [middle])

    assert taken(session) == [first]
    change(session, first, state="completed")
    assert taken(session) == [last]


def test_requeued_job_is_the_head_again(session: Session) -> None:
    """A requeued job has its id still, so that it comes before later ones."""
    (done,) = send(session, state="completed")
    (waiting,) = send(session)
    requeue(session, Job, done)

    assert taken(session, now=None) == [done]
    change(session, done, state="completed")
    assert taken(session, now=None) == [waiting]


def test_requeued_job_waits_for_the_one_that_runs(session: Session) -> None:
    """An earlier job that comes back while a later one runs does not overlap it."""
    (done,) = send(session, state="completed")
    (running,) = send(session)
    assert taken(session) == [running]
    requeue(session, Job, done)
    (free,) = send(session, channel="b")

    assert taken(session, now=None) == [free], "nor does it keep others waiting"
    change(session, running, state="completed")
    assert taken(session, now=None) == [done]


def test_discarded_job_blocks_where_the_queue_says_so(session: Session) -> None:
    """With on_discard="block" the channel waits for a requeue, delete or "skip"."""
    set_queue(session, Job, "default", on_discard="block")
    (dead,) = send(session, state="discarded")
    (waiting,) = send(session)
    (free,) = send(session, channel="b")

    assert taken(session) == [free]
    requeue(session, Job, dead)
    assert taken(session, now=None) == [dead]
    change(session, dead, state="discarded")
    assert taken(session) == []
    set_queue(session, Job, "default", on_discard="skip")
    assert taken(session) == [waiting]


def test_deleted_dead_job_no_longer_blocks(session: Session) -> None:
    """A blocked channel goes on when its dead job is gone."""
    set_queue(session, Job, "default", on_discard="block")
    (dead,) = send(session, state="discarded")
    (waiting,) = send(session)
    later = send(session, state="discarded")
    assert taken(session) == []

    session.execute(TABLES.table.delete().where(TABLES.table.c.id == dead))

    assert taken(session) == [waiting], f"{later} came after it and holds nothing"


def test_only_asked_kinds_and_open_queues(session: Session) -> None:
    """Heads of other kinds and of paused queues stay, and hold their channel."""
    (other,) = send(session, job_class=Other)
    send(session)
    set_queue(session, Job, "shut", paused=True, must_exist=False)
    send(session, queue="shut")

    assert taken(session, kinds=["work"]) == []
    assert taken(session, kinds=["other"]) == [other]


SOURCES: dict[str, tuple[list[Any], set[tuple[str, str]]]] = {
    "names": (["q1", "x"], {("q1", "a"), ("q1", "b")}),
    "pair": ([("q1", "b")], {("q1", "b")}),
    "prefix": ([Prefix("q")], {("q1", "a"), ("q1", "b"), ("q2", "a")}),
    "mixed": ([Prefix("q2"), ("q1", "a")], {("q2", "a"), ("q1", "a")}),
    "name and its channel": (["q1", ("q1", "a")], {("q1", "a"), ("q1", "b")}),
    "nothing": (["q3"], set()),
}


@pytest.mark.parametrize("source", SOURCES)
def test_heads_of_the_subscribed_are_taken(session: Session, source: str) -> None:
    """Names, pairs and prefixes choose among ordered channels as among other jobs."""
    for queue, channel in [("q1", "a"), ("q1", "b"), ("q2", "a"), ("z", "a")]:
        send(session, 2, queue=queue, channel=channel)
    queues, expected = SOURCES[source]

    found = claim(session, Job, queues=queues, limit=100, now=NOW)

    rows = [row_of(session, one.job_id) for one in found]
    assert {(row["queue"], row["channel"]) for row in rows} == expected


CHANGES: dict[str, Callable[[Session, int], object]] = {
    "earlier one": lambda session, job: requeue(session, Job, job - 1),
    "taken": lambda session, job: change(session, job, state="running"),
    "paused": lambda session, _: set_queue(session, Job, "default", paused=True),
    "limited": lambda session, _: set_queue(session, Job, "default", max_running=9),
    "kind": lambda session, job: change(session, job, kind="other"),
    "crashes": lambda session, job: change(session, job, crashes=2),
}


@pytest.mark.parametrize("meanwhile", CHANGES)
def test_lease_checks_again_what_the_look_saw(session: Session, meanwhile: str) -> None:
    """Between the look and the lock anything may change, also what is the head."""
    send(session, state="completed")
    (job,) = send(session)
    ask = Ask(1, LEASE, kinds=["work"], suspects=False, now=NOW)
    with session.begin_nested() as savepoint:
        found = lease_heads(session, TABLES, ask, [job], plain=True)
        assert [row.id for row in found or ()] == [job]
        savepoint.rollback()

    CHANGES[meanwhile](session, job)

    assert lease_heads(session, TABLES, ask, [job], plain=True) == []


def test_slots_bound_what_is_taken(session: Session) -> None:
    """No subscription gets more heads than it has slots, nor the claim in all."""
    for channel in "abcdefgh":
        send(session, queue="q1", channel=channel)
        send(session, queue="q2", channel=channel)

    jobs = claim_mapped(session, Memory(), queues={"q1": 3, ("q2", "a"): 1}, limit=10)

    assert sorted(job.queue for job in jobs) == ["q1", "q1", "q1", "q2"]
    assert len(taken(session, limit=5)) == 5


def claim_mapped(session: Session, memory: Memory, **options: Any) -> list[Any]:
    """Claim as a runner does."""
    given: dict[str, Any] = {
        "kinds": ["work", "other"],
        "queues": None,
        "limit": 10,
        "lease": LEASE,
        "runner_id": uuid4(),
        "features": Features(ordered=True),
        "memory": memory,
        "now": NOW,
        **options,
    }
    return claim_jobs(session, TABLES, **given)


def test_at_most_one_suspect_at_a_time(session: Session) -> None:
    """Of heads that crashed their runner twice, one is taken, or none."""
    for channel in "abc":
        send(session, channel=channel, crashes=2)

    assert len(claim_mapped(session, Memory(), suspects=True)) == 1
    assert claim_mapped(session, Memory(), suspects=False) == []


def test_claims_go_round(session: Session) -> None:
    """Small claims reach every channel in turn, not the first ones again and again."""
    for number in range(12):
        send(session, 5, channel=f"c{number}")
    memory, seen = Memory(), list[str]()
    for _ in range(6):
        jobs = claim_mapped(session, memory, limit=2)
        seen += [job.channel for job in jobs]
        for job in jobs:
            change(session, job.id, state="completed")

    assert len(set(seen)) == 12


def test_freed_channel_is_looked_at_by_name(session: Session) -> None:
    """What a runner has freed it finds at once, with no look left for the others."""
    for number in range(40):
        send(session, 2, channel=f"c{number:02}")
    memory = Memory()
    jobs = claim_mapped(session, memory, limit=40)
    assert len(jobs) == 40
    memory._look_at = float("inf")
    change(session, jobs[7].id, state="completed")

    assert claim_mapped(session, memory) == []
    memory.settled(jobs[7].queue, jobs[7].channel, ordered=True)
    (found,) = claim_mapped(session, memory)

    assert found.channel == jobs[7].channel
    assert memory.take_again() is not None


def test_looks_in_vain_are_bounded(session: Session) -> None:
    """Thousands of busy channels are looked at in parts, and all of them in the end."""
    fill_channels(session, 1_200, ordered=True, state="scheduled")
    (last,) = send(session, channel="z")
    memory, claims = Memory(), 0
    found: list[Any] = []
    while not found and claims < 10:
        memory._look_at = float("-inf")  # as if time had passed
        found = claim_mapped(session, memory)
        claims += 1

    assert [job.id for job in found] == [last]
    assert claims == 3  # 500 each


def fill_channels(session: Session, count: int, **columns: Any) -> None:
    """Insert *count* jobs, each in a channel of its own."""
    fill(session, count, queue="busy", **columns)
    schema = session.connection().get_execution_options()["schema_translate_map"][None]
    session.execute(
        text(f"UPDATE {schema}.jobs SET channel = id::text WHERE queue = 'busy'")
    )


def test_head_costs_two_statements(session: Session) -> None:
    """A look and a lease, the lease in a savepoint; without a head a look alone."""
    send(session, 2)
    memory = Memory()

    with sent(session) as seen:
        claim_mapped(session, memory)
    with sent(session) as again:
        claim_mapped(session, memory)

    own = [one for one in seen if "SAVEPOINT" not in one]
    assert (len(own), len(again)) == (3, 2)  # with the plain one


# Concurrency


class Diary:
    """Who held which job when, as its claimers saw it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: dict[str, list[tuple[str, int]]] = defaultdict(list)

    def note(self, what: str, jobs: list[Any]) -> None:
        """Note that *jobs* begin or end."""
        with self.lock:
            for job_id, channel in jobs:
                self.entries[channel].append((what, job_id))


def work_off(
    sessions: sessionmaker[Session], diary: Diary, settle: Callable[..., Any]
) -> None:
    """Claim and settle until no ordered job is left."""
    left = select(func.count()).where(
        TABLES.table.c.ordered, TABLES.table.c.state == "available"
    )
    while True:
        with sessions.begin() as session:
            jobs = claim(session, Job, limit=3)
            channels = [row_of(session, job.job_id)["channel"] for job in jobs]
        pairs = [
            (job.job_id, channel) for job, channel in zip(jobs, channels, strict=True)
        ]
        diary.note("begin", pairs)
        diary.note("end", pairs)
        with sessions.begin() as session:
            for job in jobs:
                settle(session, job)
            if not jobs and not session.scalar(left):
                return


@pytest.mark.slow
@pytest.mark.read_committed("nobody tries again after a conflict")
def test_eight_claimers_keep_each_channel_in_order(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """1,000 jobs in 10 channels: no two of a channel overlap, all in send order."""
    with sessions.begin() as session:
        for number in range(1_000):
            send(session, channel=f"c{number % 10}", run_at=NOW - 30_000 * SECOND * 24)
    diary = Diary()

    at_once([partial(work_off, sessions, diary, complete)] * 8, timeout=120)

    assert len(diary.entries) == 10
    for entries in diary.entries.values():
        begun = [job for what, job in entries if what == "begin"]
        assert [what for what, _ in entries] == ["begin", "end"] * 100
        assert begun == sorted(begun)


@pytest.mark.slow
@pytest.mark.read_committed("nobody tries again after a conflict")
def test_retries_do_not_let_others_overtake(
    sessions: sessionmaker[Session],
) -> None:
    """A job that fails at first runs again before its successor, with six claimers."""
    with sessions.begin() as session:
        for number in range(120):
            send(session, channel=f"c{number % 4}", backoff="constant(0)")
    diary = Diary()

    def settle(session: Session, job: Any) -> None:
        if job.attempt == 1:
            fail(session, job, "at first")
            change(session, job.job_id, state="available")
        else:
            complete(session, job)

    at_once([partial(work_off, sessions, diary, settle)] * 6, timeout=120)

    for entries in diary.entries.values():
        begun = [job for what, job in entries if what == "begin"]
        assert [what for what, _ in entries] == ["begin", "end"] * 60
        assert begun == sorted(begun)


def test_requeue_while_others_claim_never_overlaps(
    sessions: sessionmaker[Session],
) -> None:
    """An earlier job comes back in a race with a claim of the later: one of them."""
    table = TABLES.table
    running = select(func.count()).where(table.c.ordered, table.c.state == "running")
    for _ in range(15):
        with sessions.begin() as session:
            (done,) = send(session, state="completed", run_at=NOW - 9 * SECOND)
            send(session)

        def come_back(done: int = done) -> None:
            with sessions.begin() as session:
                requeue(session, Job, done)
            with sessions.begin() as session:
                claim(session, Job, limit=5)

        def take() -> None:
            with sessions.begin() as session:
                claim(session, Job, limit=5)

        at_once([come_back, take, take])

        with sessions.begin() as session:
            assert session.scalar(running) == 1
            session.execute(table.delete())


def test_backstop_costs_the_claim_alone(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Where the unique index alone sees the overlap, the transaction goes on."""
    (done,) = elsewhere(send, state="completed")
    (later,) = elsewhere(send)
    memory = Memory()
    with sessions() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        session.execute(select(1).select_from(TABLES.table)).all()  # its snapshot
        elsewhere(change, done, state="available")
        assert [c.job_id for c in elsewhere(claim, Job, now=NOW)] == [done]
        mine = make_job(session)

        jobs = claim_mapped(session, memory)

        assert [job.id for job in jobs] == [mine]
        assert memory.take_again() is not None
        session.commit()
    with sessions() as session:
        assert row_of(session, later)["state"] == JobState.AVAILABLE


def test_discard_frees_or_blocks_by_the_policy_of_that_moment(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A head that a verb discards lets the next go on, or not, as the queue says."""
    send_two = partial(elsewhere, send, 2)
    for policy, expected in [("skip", 1), ("block", 0)]:
        elsewhere(set_queue, Job, "default", on_discard=policy)
        first, _ = send_two(channel=policy)
        (job,) = elsewhere(claim, Job, now=NOW)
        assert job.job_id == first

        elsewhere(discard, job, "no use")

        assert len(elsewhere(claim, Job, now=NOW)) == expected


def test_flood_of_plain_jobs_passes_over_no_others(session: Session) -> None:
    """Claims by hand take turns too: neither heads nor fair queues starve."""
    for _ in range(9):
        make_job(session)
    head = make_job(session, ordered=True, channel="c")
    fair = make_job(session, queue="fair", channel="c")
    set_queue(session, Job, "fair", fair=True)

    found = [claim_one(session).job_id for _ in range(9)]

    assert {head, fair} <= set(found)
