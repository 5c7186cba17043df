"""Unique keys between transactions: senders wait, and none of them is aborted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import DuplicateJob, claim, complete, enqueue_many, requeue
from sqla_jobs._core.states import FINAL
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    LEASE,
    Elsewhere,
    Job,
    Special,
    Work,
    at_once,
    change,
    freed_when_awaited,
    make_job,
)

KEYS = ["a", "b", "c", "d"]
ROUNDS = 20
Sessions = sessionmaker[Session]


def live_keys(session: Session) -> list[str]:
    """Return the keys of the live jobs."""
    job = Job.__table__.c
    query = select(job.unique_key).where(job.state.not_in(FINAL))
    return sorted(session.scalars(query.where(job.unique_key.is_not(None))))


def send(session: Session, rng: random.Random, policy: str) -> None:
    """Send jobs with some of the keys, by a flush or in bulk; perhaps roll back."""
    keys = rng.choices(KEYS, k=3)
    if rng.random() < 0.5:
        kinds = rng.choices([Work, Special], k=3)
        pairs = zip(kinds, keys, strict=True)
        session.add_all(kind(unique_key=k, on_conflict=policy) for kind, k in pairs)
        session.flush()
    else:
        rows = [{"unique_key": key, "on_conflict": policy} for key in keys]
        enqueue_many(session, Work, rows, copy_threshold=rng.choice([None, 1]))
    session.add(Work())
    if rng.random() < 0.2:
        session.rollback()
    session.commit()


def work_off(session: Session) -> None:
    """Claim and complete what there is, as a runner does."""
    for found in claim(session, Job, limit=3, lease=LEASE):
        session.commit()
        complete(session, found)
        session.commit()
    session.commit()


@pytest.mark.parametrize("policy", ["skip", "replace", "raise"])
def test_concurrent_senders_of_few_keys(sessions: Sessions, policy: str) -> None:
    """No sender fails but by DuplicateJob, after which its transaction goes on."""

    def sender(seed: int) -> Callable[[], None]:
        rng = random.Random(seed)

        def run() -> None:
            for _ in range(ROUNDS):
                with sessions() as session:
                    try:
                        send(session, rng, policy)
                    except DuplicateJob:
                        assert policy in {"raise", "replace"}
                        session.expunge_all()
                        session.add(Work())
                        session.commit()

        return run

    def runner() -> None:
        with sessions() as session:
            for _ in range(ROUNDS):
                work_off(session)

    at_once([*(sender(seed) for seed in range(8)), runner])

    with sessions() as session:
        rows = [{"unique_key": k, "on_conflict": "skip"} for k in KEYS]
        enqueue_many(session, Work, rows)
        assert live_keys(session) == KEYS


def test_second_sender_waits_for_the_commit_of_the_first(sessions: Sessions) -> None:
    """It does not see the job before, so it waits, and then finds it."""
    with sessions() as first, sessions() as second:
        job = Work(unique_key="k")
        first.add(job)
        first.flush()
        double = Work(unique_key="k", on_conflict="skip")
        with freed_when_awaited(second, first):
            second.add(double)
            second.flush()

        assert double.duplicate_of == job.id


def test_second_sender_inserts_when_the_first_rolls_back(sessions: Sessions) -> None:
    """What is rolled back never had the key."""
    with sessions() as first, sessions() as second:
        first.add(Work(unique_key="k"))
        first.flush()
        job = Work(unique_key="k")
        with freed_when_awaited(second, first, Session.rollback):
            second.add(job)
            second.commit()

        assert job.duplicate_of is None
        assert live_keys(second) == ["k"]


def test_bulk_and_flush_wait_for_each_other(sessions: Sessions) -> None:
    """They take the same locks."""
    with sessions() as first, sessions() as second:
        enqueue_many(first, Work, [{"unique_key": "k"}])
        with freed_when_awaited(second, first):
            second.add(Work(unique_key="k"))
            with pytest.raises(DuplicateJob):
                second.flush()


def test_other_keys_do_not_wait(sessions: Sessions) -> None:
    """A sender that has not committed stops only senders of the same keys."""
    with sessions() as first, sessions() as second:
        first.add(Work(unique_key="k"))
        first.flush()
        second.execute(text("SET LOCAL lock_timeout = '2s'"))
        second.add_all([Work(unique_key="j"), Work()])
        second.commit()

        assert live_keys(second) == ["j"]


def test_keys_are_locked_in_one_order(sessions: Sessions) -> None:
    """Flushes of the same keys in opposite orders never wait in a circle."""

    def sender(keys: list[str]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(10):
                with sessions() as session:
                    for key in keys:
                        session.add(Work(unique_key=key, on_conflict="skip"))
                    session.flush()
                    session.rollback()

        return run

    keys = [f"{number}" for number in range(30)]
    at_once([sender(keys), sender(keys[::-1])] * 2)


def test_replace_races_a_claim(sessions: Sessions) -> None:
    """Either the old job is replaced, or it runs and the new one is refused."""

    def take() -> list[int]:
        with sessions.begin() as session:
            found = claim(session, Job, queues=["default"], lease=LEASE)
            return [one.job_id for one in found]

    def replace() -> int | None:
        with sessions.begin() as session:
            session.add(Work(unique_key="k", on_conflict="replace", queue="other"))
            try:
                session.flush()
            except DuplicateJob as exc:
                return exc.job_id
            return None

    for _ in range(ROUNDS):
        with sessions.begin() as session:
            session.execute(delete(job_tables(Job).table))
            old = make_job(session, Work, unique_key="k", run_at=func.now())
        works: list[Callable[[], Any]] = [take, replace]
        taken, refused = at_once(works)
        with sessions() as session:
            state = session.get_one(Job, old).state
            assert live_keys(session) == ["k"]
        assert (taken, refused, state) in [
            ([], None, "cancelled"),
            ([old], old, "running"),
        ]


def test_replaced_job_that_ends_meanwhile_is_no_obstacle(
    sessions: Sessions, elsewhere: Elsewhere
) -> None:
    """It waits for the row's writer; if the job is final by then, the key is free."""
    old = elsewhere(make_job, Work, unique_key="k")
    with sessions() as first, sessions() as second:
        first.get_one(Job, old).state = "cancelled"
        first.flush()
        with freed_when_awaited(second, first):
            job = Work(unique_key="k", on_conflict="replace")
            second.add(job)
            second.commit()

        assert second.get_one(Job, old).reason is None
        assert live_keys(second) == ["k"]


def test_replacing_does_not_wait_for_a_handler(
    sessions: Sessions, elsewhere: Elsewhere
) -> None:
    """A running job's row may be locked for long by its handler; it raises at once."""
    old = elsewhere(make_job, Work, state="running", unique_key="k")
    with sessions() as first, sessions() as second:
        first.get_one(Job, old).progress = {"done": 1}
        first.flush()
        second.execute(text("SET LOCAL lock_timeout = '2s'"))
        second.add(Work(unique_key="k", on_conflict="replace"))

        with pytest.raises(DuplicateJob):
            second.flush()


def test_requeue_into_a_taken_key_is_refused(session: Session) -> None:
    """A job that ended does not come back beside its successor."""
    old = make_job(session, Work, state="discarded", unique_key="k")
    session.add(Work(unique_key="k"))
    session.flush()

    with pytest.raises(DuplicateJob):
        requeue(session, Job, old)
    assert requeue(session, Job, [old]).duplicates == (old,)


def test_requeue_and_sender_of_one_key_wait_for_each_other(
    sessions: sessionmaker[Session],
) -> None:
    """Whoever comes first has the key; the other one's transaction goes on."""
    with sessions.begin() as session:
        old = make_job(session, Work, state="discarded", unique_key="k")
    with sessions() as operator, sessions() as sender:
        requeue(operator, Job, old)
        with freed_when_awaited(sender, operator):
            sender.add(Work(unique_key="k"))
            with pytest.raises(DuplicateJob):
                sender.flush()
        sender.execute(text("SELECT 1"))
    with sessions.begin() as session:
        change(session, old, state="discarded")
    with sessions() as operator, sessions() as sender:
        sender.add(Work(unique_key="k"))
        sender.flush()
        with freed_when_awaited(operator, sender):
            assert requeue(operator, Job, [old]).duplicates == (old,)
