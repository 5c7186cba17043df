"""Claiming: which jobs, in which order, and each of them once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sqla_jobs import JobMixin, JobValueError, MissingTables, UnsupportedDialect
from sqla_jobs._core.states import JobState
from sqla_jobs._store.claim import claim, claim_jobs
from sqla_jobs._store.sweep import stage
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    LEASE,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    Special,
    Work,
    at_once,
    change,
    claim_one,
    fill,
    make_job,
    row_of,
    sent,
)

TABLES = job_tables(Job)
ODD_NAME = "'; DROP TABLE jobs; -- \"$1 %s :x \\  " + "\N{PARTY POPPER}" * 41
"""A name of 200 bytes that SQL text would not survive."""


def taken(session: Session, **options: Any) -> list[int]:
    """Return the ids of one claim, in its order."""
    return [c.job_id for c in claim(session, Job, **{"now": NOW, **options})]


def pause(session: Session, name: str) -> None:
    """Pause a queue."""
    session.execute(insert(TABLES.queues).values(name=name, paused=True))


def test_claim_goes_by_priority_then_lane_then_time_then_id(session: Session) -> None:
    """Higher priority first; then fresh, retried, rescued; then the older; then id."""
    last = make_job(session, priority=-1)
    rescued = make_job(session, lane=2, run_at=NOW - 9 * SECOND)
    retried = make_job(session, lane=1, run_at=NOW - 5 * SECOND)
    second, third = make_job(session), make_job(session)
    oldest = make_job(session, run_at=NOW - SECOND)
    urgent = make_job(session, priority=5, lane=2, run_at=NOW + SECOND)

    one_by_one = [taken(session)[0] for _ in range(4)]
    rest = taken(session, limit=10)

    assert one_by_one == [urgent, oldest, second, third]
    assert rest == [retried, rescued, last]


def test_claim_marks_what_it_takes(session: Session) -> None:
    """A claim raises token and attempt, and sets the lease and the start."""
    job = make_job(session, lease_token=7, attempt=2)

    found = claim_one(session, job)

    row = row_of(session, job)
    assert (found.token, found.attempt, found.kind) == (8, 3, "work")
    assert found.leased_until == NOW + LEASE
    assert row["state"] == "running"
    assert row["lease_token"] == 8
    assert row["attempt"] == 3
    assert row["leased_until"] == NOW + LEASE
    assert row["started_at"] == NOW


@pytest.mark.parametrize("state", [s for s in JobState if s != JobState.AVAILABLE])
def test_claim_takes_only_available_jobs(session: Session, state: JobState) -> None:
    """A due job in any other state is not taken, not even by an expired lease."""
    make_job(session, state=state, run_at=NOW - SECOND)

    assert taken(session, now=NOW + LEASE * 9) == []


@pytest.mark.parametrize(
    ("queues", "expected"),
    [
        (None, {"a", "b", "c"}),
        (["a"], {"a"}),
        (["c", "a"], {"a", "c"}),
        (["a", "a"], {"a"}),
        (("nobody",), set()),
        ([], set()),
    ],
)
def test_claim_takes_from_the_given_queues(
    session: Session, queues: Sequence[str] | None, expected: set[str]
) -> None:
    """None takes from all queues, a list from those it names."""
    for name in "abc":
        make_job(session, queue=name)

    found = claim(session, Job, queues=queues, limit=10, now=NOW)

    assert {c.queue for c in found} == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("queues", [None, ["busy", "small", "tiny"]])
def test_queues_share_a_claim_in_turn(
    session: Session, queues: Sequence[str] | None
) -> None:
    """A backlog of one queue, urgent or not, leaves the others their share."""
    fill(session, 1_000, queue="busy", priority=9)
    fill(session, 3, queue="small")
    fill(session, 1, queue="tiny")

    found = claim(session, Job, queues=queues, limit=9, now=NOW)

    assert Counter(c.queue for c in found) == {"busy": 5, "small": 3, "tiny": 1}


def test_queue_that_is_named_last_is_not_always_last(session: Session) -> None:
    """When the limit is smaller than the number of queues, chance decides."""
    fill(session, 60, queue="a")
    fill(session, 60, queue="b")

    found = [claim_one(session, queues=["a", "b"]).queue for _ in range(60)]

    assert set(found) == {"a", "b"}


def test_runner_claims_no_more_than_the_slots_of_each_queue(session: Session) -> None:
    """Slots limit each queue, the limit all of them."""
    fill(session, 20, queue="mail")
    fill(session, 20, queue="default")
    options: dict[str, Any] = {"kinds": ["work"], "runner_id": uuid4(), "lease": LEASE}

    def counts(limit: int, **slots: int) -> Counter[str]:
        jobs = claim_jobs(
            session, TABLES, queues=slots, limit=limit, now=NOW, **options
        )
        return Counter(job.queue for job in jobs)

    assert counts(10, mail=3, default=2) == {"mail": 3, "default": 2}
    assert counts(4, mail=3, default=3) == {"mail": 2, "default": 2}
    assert counts(10, mail=0, default=1) == {"default": 1}


def test_kinds_filter_the_claim(session: Session) -> None:
    """Only jobs of the given kinds are taken; the others stay as they are."""
    make_job(session, Special)
    wanted = make_job(session, kind="other", priority=-1)

    assert taken(session, kinds=["other", "unheard"], limit=5) == [wanted]
    assert taken(session, kinds=[], limit=5) == []


def test_subclass_claims_its_own_kinds(session: Session) -> None:
    """A class claims its kind, its aliases and the classes below it."""
    ids = {
        k: make_job(session, kind=k) for k in ("old_work", "special", "work", "other")
    }

    special = [c.job_id for c in claim(session, Special, limit=9, now=NOW)]
    work = [c.job_id for c in claim(session, Work, limit=9, now=NOW)]

    assert special == [ids["special"]]
    assert work == [ids["old_work"], ids["work"]]


def test_unmapped_kind_is_a_plain_claim(session: Session) -> None:
    """A kind that no class here declares can be claimed with all its values."""
    make_job(
        session,
        kind="from_elsewhere",
        payload={"n": 1},
        payload_bytes=b"\0\xff",
        checkpoint={"page": 3},
        max_attempts=4,
        backoff="constant(5,0)",
    )

    found = claim_one(session)

    assert (found.kind, found.payload, found.payload_bytes) == (
        "from_elsewhere",
        {"n": 1},
        b"\0\xff",
    )
    assert (found.state, found.max_attempts, found.backoff) == (
        {"page": 3},
        4,
        "constant(5,0)",
    )


@pytest.mark.parametrize("queues", [None, ["held", "open"]])
def test_paused_queue_is_skipped(
    session: Session, queues: Sequence[str] | None
) -> None:
    """No job of a paused queue is taken; a queue set to not paused is open."""
    make_job(session, queue="held", priority=9)
    wanted = make_job(session, queue="open")
    pause(session, "held")
    session.execute(insert(TABLES.queues).values(name="open", paused=False))

    assert taken(session, queues=queues, limit=5) == [wanted]


def test_ordered_jobs_are_left_alone(session: Session) -> None:
    """The common claim does not take jobs that have to keep their order."""
    make_job(session, ordered=True, priority=9)
    wanted = make_job(session)
    options: dict[str, Any] = {"queues": None, "limit": 5, "lease": LEASE}

    jobs = claim_jobs(
        session, TABLES, kinds=["work"], runner_id=uuid4(), now=NOW, **options
    )

    assert [job.id for job in jobs] == [wanted]


def test_job_may_have_a_lease_of_its_own(session: Session) -> None:
    """The row's lease wins over the claim's."""
    make_job(session, lease=timedelta(minutes=10))

    assert claim_one(session).leased_until == NOW + timedelta(minutes=10)


def test_lease_counts_from_the_database_clock(session: Session) -> None:
    """Without ``now`` the lease starts with the statement, not the transaction."""
    make_job(session)
    before = session.scalar(text("SELECT clock_timestamp()"))

    (found,) = claim(session, Job, lease=LEASE)

    assert before is not None
    assert found.leased_until > before + LEASE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be 1 to 10000, got 0"),
        ({"limit": -3}, "limit must be 1 to 10000, got -3"),
        ({"limit": 10_001}, "limit must be 1 to 10000, got 10001"),
        ({"limit": True}, "limit must be 1 to 10000, got True"),
        ({"limit": 2.5}, r"limit must be 1 to 10000, got 2\.5"),
        ({"limit": "5"}, "limit must be 1 to 10000, got '5'"),
        ({"lease": timedelta(seconds=2.9)}, r"lease must be 3 s or more, got 2\.9 s"),
        ({"lease": -SECOND}, "lease must be 3 s or more, got -1 s"),
        ({"lease": 30}, "lease must be a timedelta of 3 s or more, got 30"),
        ({"queues": "mail"}, r"queues must be a list of names, .*\['mail'\]"),
        ({"kinds": "work"}, r"kinds must be a list of names, .*\['work'\]"),
    ],
)
def test_bad_value_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """A value out of range, or a text for a list, is an error that names it."""
    with pytest.raises(JobValueError, match=message):
        claim(session, Job, **options)


def test_missing_table_is_named_with_the_command(engine: Engine) -> None:
    """Without its table a claim says which one is missing and how to make it."""

    class Base(DeclarativeBase): ...

    class Absent(JobMixin, Base):
        __tablename__ = "absent"

    with Session(engine) as session:
        with pytest.raises(MissingTables, match=r"no table absent; .*alembic upgrade"):
            claim(session, Absent)
        session.rollback()
        job_tables(Absent).table.create(session.connection())
        with pytest.raises(MissingTables, match="no table absent_queues;"):
            claim(session, Absent)


def test_runner_claim_names_the_missing_table(engine: Engine) -> None:
    """The claim of mapped jobs says the same."""

    class Base(DeclarativeBase): ...

    class Absent(JobMixin, Base):
        __tablename__ = "absent"

    with (
        Session(engine) as session,
        pytest.raises(MissingTables, match="table absent;"),
    ):
        claim_jobs(
            session,
            job_tables(Absent),
            kinds=["x"],
            queues=None,
            limit=1,
            lease=LEASE,
            runner_id=uuid4(),
        )


def test_unsupported_database_is_named() -> None:
    """A claim on a database without a dialect says what is supported."""
    with (
        Session(create_engine("sqlite://")) as session,
        pytest.raises(UnsupportedDialect, match=r"'sqlite'.*supported: postgresql"),
    ):
        claim(session, Job)


def test_odd_queue_name_is_a_value(session: Session) -> None:
    """A name of 200 bytes with quotes and emoji is claimed, paused and left alone."""
    assert len(ODD_NAME.encode()) == 200
    job = make_job(session, queue=ODD_NAME, kind=ODD_NAME)

    assert taken(session, queues=[ODD_NAME[:-1]]) == []
    assert taken(session, queues=[ODD_NAME], kinds=[ODD_NAME]) == [job]

    make_job(session, queue=ODD_NAME)
    pause(session, ODD_NAME)
    assert taken(session, queues=[ODD_NAME]) == []


def test_suspects_come_one_per_claim(session: Session) -> None:
    """Of jobs that crashed their runner twice a claim takes at most one."""
    fill(session, 5, crashes=2, priority=9)
    fill(session, 3, crashes=1)

    def crashes(**options: Any) -> list[int]:
        jobs = claim_jobs(
            session,
            TABLES,
            kinds=["work"],
            limit=10,
            lease=LEASE,
            runner_id=uuid4(),
            now=NOW,
            **options,
        )
        return sorted(job.crashes for job in jobs)

    assert crashes(queues=None) == [1, 1, 1, 2]
    assert crashes(queues={"default": 10}) == [2]
    assert crashes(queues={"default": 10}, suspects=False) == []
    assert crashes(queues=None, suspects=False) == []


def test_suspects_of_several_queues_come_one_per_claim(session: Session) -> None:
    """The rule is for the whole claim, not for each queue."""
    for name in "abc":
        fill(session, 2, crashes=3, queue=name)

    assert len(taken(session, limit=10)) == 1


@pytest.mark.parametrize("queues", [None, ["a", "b"]])
def test_limit_holds_in_nested_loops(
    session: Session, queues: Sequence[str] | None
) -> None:
    """The plan in which LIMIT was run once per row takes exactly the limit."""
    for name in "abc":
        fill(session, 500, queue=name)
    session.execute(text("ANALYZE"))
    # Without its key, and whole scans being dear, the table is scanned once, outside
    # of a loop that looks for each row among those to take.
    schema = session.connection().get_execution_options()["schema_translate_map"][None]
    session.execute(
        text(f"ALTER TABLE {schema}.jobs DROP CONSTRAINT jobs_pkey CASCADE")
    )
    for setting in ("seqscan", "hashjoin", "mergejoin", "material", "memoize"):
        session.execute(text(f"SET LOCAL enable_{setting} = off"))

    assert len(taken(session, queues=queues, limit=7)) == 7
    running = session.query(Job).filter_by(state="running").count()
    assert running == 7


def test_claim_is_one_statement(session: Session) -> None:
    """Any number of jobs is claimed in one statement, as values or mapped."""
    fill(session, 100)

    with sent(session) as statements:
        assert len(taken(session, limit=50)) == 50
        assert len(statements) == 1
        jobs = claim_jobs(
            session,
            TABLES,
            kinds=["work"],
            queues={"default": 50},
            limit=50,
            lease=LEASE,
            runner_id=uuid4(),
            now=NOW,
        )

    assert len(jobs) == 50
    assert len(statements) == 2


def test_mapped_claim_refreshes_what_the_session_knew(session: Session) -> None:
    """A job that was loaded before comes with the values of its new attempt."""
    job = session.get_one(Job, make_job(session, lease_token=4))
    assert job.state == "available"

    (found,) = claim_jobs(
        session,
        TABLES,
        kinds=["work"],
        queues=None,
        limit=1,
        lease=LEASE,
        runner_id=(runner := uuid4()),
        now=NOW,
    )

    assert found is job
    assert (job.state, job.lease_token, job.attempt) == ("running", 5, 1)
    assert (job.runner_id, job.leased_until) == (runner, NOW + LEASE)


def test_claim_does_not_flush(session: Session) -> None:
    """Objects that the caller has pending stay so."""
    job = Work()
    session.add(job)

    assert taken(session) == []
    assert job in session.new


def test_claims_skip_what_another_one_holds(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Two uncommitted claims do not wait for each other nor share a job."""
    elsewhere(fill, 4)

    with sessions() as first, sessions() as second:
        one, two = taken(first, limit=2), taken(second, limit=4)

        assert len(one) == len(two) == 2
        assert not set(one) & set(two)


@pytest.mark.slow
def test_six_claimers_share_one_retryable_job(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """However often a due job is staged and claimed by six, one of them gets it."""
    rounds, workers = 300, 6
    job = elsewhere(make_job, state="retryable", run_at=NOW)

    def reset(session: Session) -> None:
        change(session, job, state="retryable")

    def work() -> int:
        with sessions() as session:
            stage(session, Job, now=NOW)
            session.commit()
            found = len(claim(session, Job, limit=3, now=NOW))
            session.commit()
        return found

    for number in range(1, rounds + 1):
        elsewhere(reset)

        # All may skip the row because another one is staging it.
        assert sum(at_once([work] * workers)) + work() == 1, f"round {number}"
        assert elsewhere(row_of, job)["lease_token"] == 1 + number


def test_eight_claimers_share_a_thousand_jobs(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Every job is claimed, and each by one of them only."""
    elsewhere(fill, 500, queue="a")
    elsewhere(fill, 500, queue="b")

    def work() -> list[int]:
        mine: list[int] = []
        while True:
            with sessions.begin() as session:
                found = [c.job_id for c in claim(session, Job, limit=7)]
            if not found and not elsewhere(count_available):
                return mine
            mine += found

    def count_available(session: Session) -> int:
        return session.query(Job).filter_by(state="available").count()

    everything = [job for found in at_once([work] * 8) for job in found]

    assert len(everything) == 1_000
    assert len(set(everything)) == 1_000
