"""What operators do to jobs by id: cancel, requeue, purge."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    DuplicateJob,
    HoldExpired,
    JobState,
    JobValueError,
    abort_hold,
    confirm_hold,
    extend_hold,
)
from sqla_jobs._core.settle import Settlement
from sqla_jobs._core.states import (
    CANCELLABLE,
    FINAL,
    LIVE,
    SETTLE_RULES,
    TRANSITIONS,
)
from sqla_jobs._store.claim import claim
from sqla_jobs._store.holds import expire_holds
from sqla_jobs._store.lease import fence, renew_many
from sqla_jobs._store.operate import (
    CancelResult,
    RequeueResult,
    request_cancel,
    requeue,
)
from sqla_jobs._store.retention import purge
from sqla_jobs._store.settle import settle
from sqla_jobs._store.sweep import rescue, stage
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    DAY,
    LEASE,
    NOW,
    Effect,
    Elsewhere,
    Job,
    Joined,
    Other,
    Special,
    Work,
    at_once,
    change,
    claim_one,
    fill,
    freed_when_awaited,
    make_job,
    row_of,
    sent,
)

TABLES = job_tables(Job)
FINAL_STATES = pytest.mark.parametrize("state", sorted(FINAL))
UNKNOWN = 999_999_999


# Cancel


@pytest.mark.parametrize("state", sorted(CANCELLABLE))
def test_waiting_job_is_cancelled_at_once(session: Session, state: JobState) -> None:
    """A job that nobody runs ends with the reason and the time."""
    job = make_job(session, state=state)

    answer = request_cancel(session, Job, [job], reason="no longer", now=NOW)

    assert answer == CancelResult((job,), (), ())
    row = row_of(session, job)
    assert (row["state"], row["reason"]) == ("cancelled", "no longer")
    assert (row["finished_at"], row["cancel_requested_at"]) == (NOW, NOW)


def test_running_job_is_asked_to_end(session: Session) -> None:
    """A running job keeps its lease; the first request's time stays."""
    job = make_job(session, state="running")
    before = row_of(session, job)

    first = request_cancel(session, Job, [job], now=NOW)
    again = request_cancel(session, Job, [job], reason="really", now=NOW + DAY)

    assert first == again == CancelResult((), (job,), ())
    assert row_of(session, job) == {
        **before,
        "cancel_requested_at": NOW,
        "reason": "really",
    }


@FINAL_STATES
def test_final_job_is_not_cancelled(session: Session, state: JobState) -> None:
    """What has ended stays as it ended."""
    job = make_job(session, state=state)
    before = row_of(session, job)

    assert request_cancel(session, Job, [job]) == CancelResult((), (), (job,))

    assert row_of(session, job) == before


def test_cancel_answers_for_every_id(session: Session) -> None:
    """Each id once, sorted; in one statement; none is no error."""
    ids = {state: make_job(session, state=state) for state in JobState}
    wanted = [UNKNOWN, *ids.values(), *ids.values()][::-1]

    with sent(session) as statements:
        answer = request_cancel(session, Job, wanted, now=NOW)

    assert len(statements) == 1
    assert answer.cancelled == tuple(sorted(ids[state] for state in CANCELLABLE))
    assert answer.requested == (ids[JobState.RUNNING],)
    assert answer.unchanged == (*sorted(ids[state] for state in FINAL), UNKNOWN)
    assert request_cancel(session, Job, []) == CancelResult((), (), ())


def test_cancel_reason_is_storable(session: Session) -> None:
    """Whatever text an operator gives is cut and cleaned."""
    job = make_job(session)

    request_cancel(session, Job, [job], reason="\x00\ud800" * 1_000)

    assert 0 < len(row_of(session, job)["reason"].encode()) <= 1_000


def test_cancel_sees_what_a_claim_did_meanwhile(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job claimed while the cancel waited for it is asked, not ended."""
    job = elsewhere(make_job)
    with sessions() as claimer, sessions() as canceller:
        claim_one(claimer, job)

        with freed_when_awaited(canceller, claimer):
            answer = request_cancel(canceller, Job, [job])
        canceller.commit()

    assert answer == CancelResult((), (job,), ())
    assert elsewhere(row_of, job)["state"] == "running"


def test_cancel_sees_what_completed_meanwhile(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job that completed while the cancel waited for it stays completed."""
    job = elsewhere(make_job, state="running")
    with sessions() as holder, sessions() as canceller:
        settle(holder, TABLES, [Settlement(job, 1, "complete")])

        with freed_when_awaited(canceller, holder):
            answer = request_cancel(canceller, Job, [job])
        canceller.commit()

    assert answer == CancelResult((), (), (job,))
    assert elsewhere(row_of, job)["state"] == "completed"


def _cancel(session: Session, ids: list[int]) -> object:
    return request_cancel(session, Job, ids)


def _requeue(session: Session, ids: list[int]) -> object:
    return requeue(session, Job, ids)


@pytest.mark.parametrize(
    ("operate", "state"), [(_cancel, "running"), (_requeue, "completed")]
)
def test_operators_lock_in_one_order(
    sessions: sessionmaker[Session],
    elsewhere: Elsewhere,
    operate: Callable[[Session, list[int]], object],
    state: str,
) -> None:
    """Whatever the order of ids and rows, two operators do not deadlock."""
    first, second = (elsewhere(make_job, state=state) for _ in range(2))
    elsewhere(change, first, progress=1)  # now behind the second one in the heap
    with sessions() as one, sessions() as two:
        operate(one, [first])

        with freed_when_awaited(two, one, lambda session: operate(session, [second])):
            operate(two, [second, first])
        two.commit()


# Requeue


@FINAL_STATES
def test_final_job_starts_anew(session: Session, state: JobState) -> None:
    """A requeued job is as new, but for its id, its token and its history."""
    job = make_job(
        session,
        state=state,
        lease_token=7,
        attempt=10,
        crashes=3,
        snoozes=2,
        lane=2,
        checkpoint={"page": 1},
        result=[1],
        progress=[1, 2],
        reason="poison",
        last_error="E: x",
        cancel_requested_at=NOW,
    )

    assert requeue(session, Job, job, now=NOW + DAY) == RequeueResult((job,), (), ())

    row = row_of(session, job)
    assert row["state"] == "available"
    assert row["run_at"] == NOW + DAY
    zeros = [row[name] for name in ("attempt", "crashes", "snoozes", "lane")]
    assert zeros == [0, 0, 0, 0]
    emptied = (
        "checkpoint", "result", "progress", "reason", "cancel_requested_at",
        "finished_at",
    )  # fmt: skip
    assert [row[name] for name in emptied] == [None] * len(emptied)
    assert (row["lease_token"], row["last_error"]) == (7, "E: x")
    again = claim_one(session, job, now=NOW + DAY)
    assert (again.token, again.attempt, again.state) == (8, 1, {})


def test_requeue_may_keep_the_state(session: Session) -> None:
    """With ``keep_state`` the next attempt sees the saved checkpoint."""
    job = make_job(session, state="discarded", checkpoint={"page": 3})

    requeue(session, Job, job, keep_state=True, now=NOW)

    assert claim_one(session, job).state == {"page": 3}


@pytest.mark.parametrize("state", sorted(LIVE))
def test_live_job_is_not_requeued(session: Session, state: JobState) -> None:
    """A job that has not ended is left as it is, and listed."""
    job = make_job(session, state=state)
    before = row_of(session, job)

    assert requeue(session, Job, job) == RequeueResult((), (), (job,))
    assert requeue(session, Job, [job, UNKNOWN]) == RequeueResult(
        (), (), (job, UNKNOWN)
    )

    assert row_of(session, job) == before


@pytest.mark.parametrize("holder", sorted(LIVE))
def test_requeue_into_a_taken_key(session: Session, holder: JobState) -> None:
    """One job raises and names the key's problem; of many it is skipped and listed."""
    taken = make_job(session, state="completed", unique_key="k")
    make_job(session, state=holder, unique_key="k")
    free = make_job(session, state="completed", unique_key="other")

    with pytest.raises(DuplicateJob, match=f"job {taken} .* holds its unique key"):
        requeue(session, Job, taken)

    assert requeue(session, Job, [free, taken]) == RequeueResult((free,), (taken,), ())


def test_requeue_of_two_with_one_key(session: Session) -> None:
    """Of several final jobs with one key the oldest is requeued."""
    jobs = [make_job(session, state="discarded", unique_key="k") for _ in range(3)]

    answer = requeue(session, Job, jobs[::-1])

    assert answer == RequeueResult((jobs[0],), tuple(jobs[1:]), ())


def test_final_job_frees_its_unique_key(session: Session) -> None:
    """As long as a job lives no other has its key; any end makes room."""
    for state in sorted(LIVE):
        holder = make_job(session, state=state, unique_key="k")
        with pytest.raises(IntegrityError, match="unique_v1"), session.begin_nested():
            make_job(session, unique_key="k")
        for final in sorted(FINAL):
            change(session, holder, state=final)
            holder = make_job(session, state=state, unique_key="k")
        change(session, holder, state="completed")


@pytest.mark.parametrize("single", [True, False])
def test_requeue_race_keeps_the_callers_transaction(
    sessions: sessionmaker[Session], elsewhere: Elsewhere, single: bool
) -> None:
    """A key taken while the requeue waits is a duplicate, not a broken transaction."""
    job = elsewhere(make_job, state="discarded", unique_key="k")
    answers: list[RequeueResult] = []
    with sessions() as rival, sessions() as operator:
        operator.add(Effect(note="mine"))
        operator.flush()
        make_job(rival, unique_key="k")

        with freed_when_awaited(operator, rival):
            try:
                answers.append(requeue(operator, Job, job if single else [job]))
            except DuplicateJob:
                assert single
        operator.commit()

    assert answers == ([] if single else [RequeueResult((), (job,), ())])
    assert elsewhere(lambda session: session.scalar(select(Effect.note))) == "mine"
    assert elsewhere(row_of, job)["state"] == "discarded"


# Purge


def test_purge_deletes_jobs_with_their_attempts(session: Session) -> None:
    """By default all final jobs go, with their history; live ones stay."""
    ids = {state: make_job(session, state=state) for state in JobState}
    for job in ids.values():
        session.execute(
            insert(TABLES.attempts).values(
                job_id=job, lease_token=1, number=1, finished_at=NOW, outcome="retry"
            )
        )

    with sent(session) as statements:
        assert purge(session, Job, now=NOW) == len(FINAL)

    assert len(statements) == 1
    left = set(session.scalars(select(TABLES.table.c.id)))
    assert left == {ids[state] for state in LIVE}
    assert set(session.scalars(select(TABLES.attempts.c.job_id))) == left


def test_purge_goes_by_queue_state_and_age(session: Session) -> None:
    """Each condition narrows what is deleted."""

    def fresh() -> None:
        session.execute(TABLES.table.delete())
        for queue in ("a", "b"):
            for state in ("completed", "discarded"):
                for age in (0, 10):
                    make_job(
                        session, queue=queue, state=state, finished_at=NOW - age * DAY
                    )

    def purged(**options: Any) -> int:
        fresh()
        return purge(session, Job, now=NOW, **options)

    assert purged() == 8
    assert purged(queues=["a"]) == 4
    assert purged(queues=[]) == 0
    assert purged(states=["completed"]) == 4
    assert purged(states=[JobState.CANCELLED]) == 0
    assert purged(older_than=DAY) == 4
    assert purged(limit=3) == 3
    assert purged(queues=["b"], states=["discarded"], older_than=DAY) == 1


def test_purge_of_waiting_jobs_counts_from_their_time(session: Session) -> None:
    """Jobs that never ran can be purged; their age is that of ``run_at``."""
    old = make_job(session, state="available", run_at=NOW - 2 * DAY)
    new = make_job(session, state="available", run_at=NOW)

    assert purge(session, Job, states=["available"], older_than=DAY, now=NOW) == 1

    assert row_of(session, new)["id"] == new
    assert requeue(session, Job, old).unchanged == (old,)


def test_purge_of_a_class_spares_the_others(session: Session) -> None:
    """A class deletes its kinds and those below it, no others."""
    other = make_job(session, Other, state="completed")
    unmapped = make_job(session, kind="from_elsewhere", state="completed")
    for job_class in (Work, Special):
        make_job(session, job_class, state="completed")

    assert purge(session, Work, now=NOW) == 2
    assert set(session.scalars(select(TABLES.table.c.id))) == {other, unmapped}
    assert purge(session, Job, now=NOW) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"states": ["running"]}, "does not delete running jobs; request_cancel"),
        ({"states": [*FINAL, "running"]}, "does not delete running jobs"),
        ({"states": []}, "needs at least one state"),
        ({"states": ["done"]}, "'done' is not a valid JobState; states are scheduled,"),
        ({"limit": 0}, "limit must be 1 to 10000, got 0"),
        ({"queues": "mail"}, r"queues must be a list of names, .*\['mail'\]"),
    ],
)
def test_bad_purge_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """The error says what is wrong, and nothing is deleted."""
    make_job(session, state="completed")

    with pytest.raises(JobValueError, match=message):
        purge(session, Job, **options)

    assert session.scalar(select(func.count()).select_from(TABLES.table)) == 1


def test_purge_takes_the_rows_of_joined_classes(session: Session) -> None:
    """The row in a subclass's own table goes with the job."""
    job = Joined(note="x")
    session.add(job)
    session.flush()
    change(session, job.id, state="completed", finished_at=NOW)

    assert purge(session, Job, now=NOW) == 1

    joined = Joined.__table__
    assert session.scalar(select(func.count()).select_from(joined)) == 0


def test_purge_skips_what_somebody_is_writing(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A locked job is left for the next time."""
    busy, free = (elsewhere(make_job, state="completed") for _ in range(2))
    with sessions() as operator:
        requeue(operator, Job, busy)

        assert elsewhere(purge, Job, now=NOW) == 1

        operator.commit()
    assert elsewhere(row_of, busy)["state"] == "available"
    assert elsewhere(requeue, Job, free).unchanged == (free,)


def test_purge_skips_what_a_new_reference_holds(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job that an uncommitted row refers to is not waited for."""
    busy, free = (elsewhere(make_job, Joined, state="completed") for _ in range(2))
    with sessions() as writer:
        joined: Any = Joined.__table__
        writer.execute(insert(joined).values(id=busy, note="new"))

        def purged(session: Session) -> int:
            session.execute(select(func.set_config("lock_timeout", "100", True)))
            return purge(session, Job, now=NOW)

        assert elsewhere(purged) == 1
    assert elsewhere(row_of, busy)["id"] == busy
    assert elsewhere(requeue, Job, free).unchanged == (free,)


# Every statement obeys the table of transitions


def _settle_any(session: Session, rand: random.Random, jobs: list[int]) -> None:
    actions = sorted({rule[0] for rule in SETTLE_RULES} - {"rescue"})
    rows = [
        Settlement(
            job,
            rand.choice([0, 1, 2, 3, row_of(session, job)["lease_token"]]),
            rand.choice(actions),
            delay=rand.choice([None, 0.0, 50.0]),
        )
        for job in rand.sample(jobs, 8)
    ]
    settle(session, TABLES, rows, now=NOW)


def _fence_any(session: Session, rand: random.Random, jobs: list[int]) -> None:
    for job in rand.sample(jobs, 8):
        token = row_of(session, job)["lease_token"]
        fence(session, TABLES, job, token, lease=LEASE, checkpoint="{}", now=NOW)
        renew_many(session, TABLES, [(job, token)], lease=LEASE, now=NOW)


def _hold_any(session: Session, rand: random.Random, jobs: list[int]) -> None:
    now = NOW + rand.random() * DAY
    verb: Any = rand.choice(
        [confirm_hold, abort_hold, partial(extend_hold, for_=LEASE)]
    )
    with suppress(HoldExpired):
        verb(session, Job, rand.sample(jobs, rand.randint(1, 3)), now=now)
    if rand.random() < 0.3:
        expire_holds(session, TABLES, now=now)


STEPS: dict[str, Callable[[Session, random.Random, list[int]], object]] = {
    "claim": lambda s, r, jobs: claim(s, Job, limit=r.randint(1, 9), now=NOW),
    "stage": lambda s, r, jobs: stage(s, Job, now=NOW + r.random() * 2 * DAY),
    "rescue": lambda s, r, jobs: rescue(s, Job, now=NOW + r.random() * 2 * LEASE),
    "cancel": lambda s, r, jobs: request_cancel(s, Job, r.sample(jobs, 3), now=NOW),
    "requeue": lambda s, r, jobs: requeue(s, Job, r.sample(jobs, 9), now=NOW),
    "settle": _settle_any,
    "fence": _fence_any,
    "hold": _hold_any,
}
VERBS = {
    "claim": {"claim"},
    "stage": {"stage"},
    "rescue": {"release, rescue", "cancel", "discard"},
    "cancel": {"cancel", "cancel, abort, expire"},
    "requeue": {"requeue"},
    "settle": {"complete", "retry", "snooze", "cancel", "discard", "release, rescue"},
    "fence": set[str](),
    "hold": {"confirm", "cancel, abort, expire"},
}


@pytest.mark.parametrize("seed", range(5))
def test_no_statement_leaves_the_table_of_transitions(
    session: Session, seed: int
) -> None:
    """Random verbs on random rows only make changes that the table has for them."""
    rand = random.Random(seed)
    states = [rand.choice(list(JobState)) for _ in range(30)]
    jobs = [
        make_job(
            session,
            state=state,
            max_attempts=rand.choice([1, 2, 10]),
            crashes=rand.choice([0, 2]),
            unique_key=str(key) if rand.random() < 0.2 else None,
            held_until=NOW + rand.random() * DAY if state == JobState.HELD else None,
        )
        for key, state in enumerate(states)
    ]
    query = select(TABLES.table.c.id, TABLES.table.c.state, TABLES.table.c.lease_token)
    seen = set[tuple[str, str]]()
    for _ in range(150):
        before = {row.id: row for row in session.execute(query)}
        name = rand.choice(list(STEPS))
        STEPS[name](session, rand, jobs)
        for row in session.execute(query):
            old = before[row.id]
            assert row.lease_token >= old.lease_token
            raised = row.lease_token > old.lease_token
            assert not raised or name in ("claim", "rescue"), name
            if row.state == old.state:
                continue
            verb = TRANSITIONS[JobState(old.state)].get(JobState(row.state))
            assert verb in VERBS[name], (name, old.state, row.state)
            assert raised == (name in ("claim", "rescue"))
            seen.add((old.state, row.state))

    assert len(seen) > 8  # the walk got around


@pytest.mark.slow
def test_verbs_do_not_deadlock(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Sweeps, batches and operators of several processes never wait in a circle."""
    elsewhere(fill, 60, max_attempts=1_000_000)
    elsewhere(fill, 60, state="running", attempt=1, leased_until=NOW, lease_token=1)
    query = select(TABLES.table.c.id)
    ids = elsewhere(lambda session: list(session.scalars(query)))

    def work(seed: int) -> Callable[[], None]:
        def run() -> None:
            rand = random.Random(seed)
            for _ in range(60):
                name = rand.choice(list(STEPS))
                if name == "fence":  # one job per transaction, as a handler's
                    continue
                elsewhere(STEPS[name], rand, ids)

        return run

    at_once([work(seed) for seed in range(6)])

    assert elsewhere(lambda session: len(session.scalars(query).all())) == 120
