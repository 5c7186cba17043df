"""Cancel by unique key, by fingerprint, and by any condition on a job class."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, exists, or_, select, text, true
from sqlalchemy.orm import Session, aliased, sessionmaker

from sqla_jobs import CancelResult, JobState, JobValueError, request_cancel
from sqla_jobs._core.settle import Settlement
from sqla_jobs._core.states import CANCELLABLE, FINAL, LIVE
from sqla_jobs._store.settle import settle
from tests.conformance.enqueue_kit import Ear, in_schema, schema_for
from tests.conformance.factories import (
    NOW,
    Elsewhere,
    at_once,
    freed_when_awaited,
    make_job,
    sent,
)
from tests.conformance.operators.kit import (
    TABLES,
    Base,
    Call,
    Invoice,
    Job,
    Other,
    Report,
    Send,
    Tick,
    Urgent,
    add,
    row_of,
)

NONE = CancelResult((), (), ())


def state_of(session: Session, job_id: int, job_class: type[Any] = Job) -> str:
    """Return the state of a job's row."""
    return str(row_of(session, job_id, job_class)["state"])


# By unique key and fingerprint


@pytest.mark.parametrize("state", sorted(LIVE))
def test_cancel_by_unique_key_ends_or_asks_the_holder(
    session: Session, state: JobState
) -> None:
    """The live job with the key is cancelled, or asked; others are left alone."""
    job = make_job(session, Send, state=state, unique_key="k")
    other = make_job(session, Send, unique_key="k2")
    done = make_job(session, Send, state="completed", unique_key="k")

    answer = request_cancel(session, Job, unique_key="k", reason="no", now=NOW)

    asked = state == JobState.RUNNING
    assert answer == CancelResult(() if asked else (job,), (job,) if asked else (), ())
    assert row_of(session, job)["reason"] == "no"
    assert (state_of(session, other), state_of(session, done)) == (
        "available",
        "completed",
    )


def test_cancelled_waiting_job_frees_its_key_at_once(session: Session) -> None:
    """A waiting job gives its key back; a running one keeps it until it has ended."""
    waiting = make_job(session, Send, unique_key="k")
    request_cancel(session, Job, unique_key="k")
    running = make_job(session, Send, state="running", unique_key="k")

    request_cancel(session, Job, unique_key="k")

    assert state_of(session, waiting) == "cancelled"
    live = select(TABLES.table.c.id).where(
        TABLES.table.c.unique_key == "k", TABLES.table.c.state.not_in(sorted(FINAL))
    )
    assert session.scalars(live).all() == [running]
    settle(session, TABLES, [Settlement(running, 1, "retry", delay=1.0)])
    assert session.scalars(live).all() == []


def test_cancel_by_fingerprint_takes_all_live_jobs(session: Session) -> None:
    """Each live job with the fingerprint; final ones are neither changed nor listed."""
    ids = {s: make_job(session, Send, state=s, fingerprint="f") for s in JobState}
    stranger = make_job(session, Send, fingerprint="g")

    with sent(session) as statements:
        answer = request_cancel(session, Job, fingerprint="f", now=NOW)

    assert len(statements) == 1
    assert answer == CancelResult(
        tuple(sorted(ids[state] for state in CANCELLABLE)),
        (ids[JobState.RUNNING],),
        (),
    )
    for state in FINAL:
        assert state_of(session, ids[state]) == state
    assert state_of(session, stranger) == "available"


def test_cancel_of_nothing_says_so(session: Session) -> None:
    """An unknown key is no error."""
    assert request_cancel(session, Job, unique_key="k") == NONE
    assert request_cancel(session, Job, fingerprint="f") == NONE
    assert request_cancel(session, Job, where=Job.queue == "nowhere") == NONE


# By a condition


def test_cancel_where_goes_by_arguments(session: Session) -> None:
    """A condition on an `Arg` takes the class's jobs, those below and its aliases."""
    hits = [
        add(session, Send(subject="Hi")),
        add(session, Urgent(subject="Hi")),
        make_job(session, Send, kind="old_send", payload={"subject": "Hi"}),
    ]
    add(session, Send(subject="Ho"))
    make_job(session, Call, payload={"subject": "Hi"})

    answer = request_cancel(session, Send, where=Send.subject == "Hi")

    assert answer == CancelResult(tuple(hits), (), ())


def test_condition_on_a_class_is_about_its_jobs_only(session: Session) -> None:
    """Given with the root, the condition's class decides; and the lower one of two."""
    hit = add(session, Send(subject="Hi"))
    urgent = add(session, Urgent(subject="Hi"))
    stranger = make_job(session, Call, payload={"subject": "Hi"})

    answers = [
        request_cancel(session, Urgent, where=Send.subject == "Hi"),
        request_cancel(session, Job, where=Send.subject == "Hi"),
    ]

    assert answers == [CancelResult((urgent,), (), ()), CancelResult((hit,), (), ())]
    assert state_of(session, stranger) == "available"


def test_cancel_where_of_a_joined_class(session: Session) -> None:
    """Columns of the subclass's own table and of the hot table may be mixed."""
    hit = add(session, Report(title="a", queue="x"))
    asked = add(session, Report(title="a", queue="x"), state="running")
    add(session, Report(title="a", queue="y"))
    add(session, Report(title="b", queue="x"))

    answer = request_cancel(
        session, Job, where=(Report.title == "a") & (Report.queue == "x")
    )

    assert answer == CancelResult((hit,), (asked,), ())


def test_cancel_where_through_a_relationship(session: Session) -> None:
    """Other tables are asked in subqueries: `has`, `in_`, `exists`."""
    paid, unpaid = Invoice(paid=True), Invoice(paid=False)
    jobs = [add(session, Send(invoice=invoice)) for invoice in (paid, unpaid, paid)]
    ways = [
        Send.invoice.has(Invoice.paid),
        Send.invoice_id.in_(select(Invoice.id).where(Invoice.paid)),
        exists().where(Invoice.id == Send.invoice_id, Invoice.paid),
    ]

    for where in ways:
        session.execute(TABLES.table.update().values(state="available"))
        answer = request_cancel(session, Send, where=where)
        assert answer.cancelled == (jobs[0], jobs[2])


def test_cancel_where_leaves_final_jobs_alone(session: Session) -> None:
    """Only live jobs are touched and listed, whatever the condition says."""
    ids = {state: make_job(session, Send, state=state) for state in JobState}

    answer = request_cancel(session, Job, where=true())

    assert answer.cancelled == tuple(sorted(ids[state] for state in CANCELLABLE))
    assert (answer.requested, answer.unchanged) == ((ids[JobState.RUNNING],), ())
    assert state_of(session, ids[JobState.COMPLETED]) == "completed"


def test_cancel_where_is_one_statement_for_any_number(session: Session) -> None:
    """A large set is no loop; bare attributes are conditions too."""
    session.add_all([Send(subject=str(i % 2)) for i in range(3_000)])
    session.flush()

    with sent(session) as statements:
        answer = request_cancel(session, Job, where=Send.subject == "1")

    assert len(statements) == 1
    assert len(answer.cancelled) == 1_500
    assert request_cancel(session, Job, where=Job.ordered) == NONE


def test_cancel_where_sees_pending_jobs(session: Session) -> None:
    """As a query would, it flushes what the session holds."""
    job = Send(subject="new")
    session.add(job)

    answer = request_cancel(session, Job, where=Send.subject == "new")

    assert answer.cancelled == (job.id,)


def test_cancel_where_looks_again_after_waiting(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job that no longer meets the condition when its lock is free is spared."""
    job = elsewhere(make_job, Send, queue="old")
    with sessions() as mover, sessions() as canceller:
        mover.execute(TABLES.table.update().values(queue="new"))

        with freed_when_awaited(canceller, mover):
            answer = request_cancel(canceller, Job, where=Job.queue == "old")
        canceller.commit()

    assert answer == NONE
    assert elsewhere(state_of, job) == "available"


def test_cancels_by_condition_do_not_deadlock(elsewhere: Elsewhere) -> None:
    """Two operators with overlapping sets wait for each other in one order."""
    for _ in range(5):
        elsewhere(lambda session: session.add_all([Send() for _ in range(200)]))
        works = [
            lambda where=where: elsewhere(request_cancel, Job, where=where)
            for where in (Send.copies == 1, Job.queue == "mail", Job.id > 0, true())
        ]

        answers = at_once(works)

        assert sum(len(answer.cancelled) for answer in answers) == 200


def test_cancel_of_a_class_spares_other_kinds(session: Session) -> None:
    """By ids, key and fingerprint, only jobs of the class and those below it."""
    mine = make_job(session, Urgent, fingerprint="f", unique_key="a")
    other = make_job(session, Call, fingerprint="f", unique_key="b")

    assert request_cancel(session, Send, [other]).unchanged == (other,)
    assert request_cancel(session, Send, unique_key="b") == NONE
    assert request_cancel(session, Send, fingerprint="f").cancelled == (mine,)
    assert state_of(session, other) == "available"


def test_cancel_stays_in_its_root_and_schema(engine: Engine) -> None:
    """Neither the second root's jobs nor another tenant's are touched."""
    with schema_for(Base, engine) as one, schema_for(Base, engine) as two:
        here, there = in_schema(engine, one), in_schema(engine, two)
        for tenant in (here, there):
            with Session(tenant) as session, session.begin():
                make_job(session, Send, payload={"subject": "Hi"})
                make_job(session, Tick, payload={"subject": "Hi"})
        with Session(here) as session, session.begin():
            answer = request_cancel(session, Job, where=Send.subject == "Hi")
            assert len(answer.cancelled) == 1
            assert state_of(session, 1, Other) == "available"
        with Session(there) as session:
            assert state_of(session, 1) == state_of(session, 1, Other) == "available"


@pytest.mark.parametrize(("ordered", "wakes"), [(True, 1), (False, 0)])
def test_cancel_wakes_runners_for_successors_of_ordered_jobs(
    job_engine: Engine, sessions: sessionmaker[Session], ordered: bool, wakes: int
) -> None:
    """What waits behind a cancelled ordered job may run; others free nothing."""
    ear = Ear(job_engine)
    try:
        with sessions.begin() as session:
            job = make_job(session, Send, ordered=ordered, channel="c")
        assert ear.heard() == 0

        with sessions.begin() as session:
            assert request_cancel(session, Job, job).cancelled == (job,)

        assert ear.heard() == wakes
    finally:
        ear.close()


# What is refused


ALIAS = aliased(Send)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "exactly one of ids, unique_key, fingerprint and where; got none"),
    "two": ({"ids": [1], "unique_key": "k"}, "got ids and unique_key"),
    "three": (
        {"fingerprint": "f", "unique_key": "k", "where": true()},
        "got unique_key and fingerprint and where",
    ),
    "text ids": ({"ids": "12"}, "ids must be a list of ids of jobs, got '12'"),
    "texts": ({"ids": ["1"]}, "ids must be integers, got '1'; give job.id"),
    "bool": ({"ids": True}, "ids must be a list of ids of jobs, got True"),
    "huge": ({"ids": [2**63]}, "ids must be integers, got 9223372036854775808"),
    "empty key": ({"unique_key": ""}, "unique_key='' must not be empty"),
    "odd key": ({"fingerprint": 3}, "fingerprint=3 must be a string"),
    "text": ({"where": "queue = 'mail'"}, "is no condition; write it with .* of Job,"),
    "python bool": ({"where": False}, "where=False is no condition"),
    "sql text": ({"where": text("true")}, "is no condition"),
    "other table": (
        {"where": Invoice.paid.is_(True)},
        r"about rows of invoices, not of Job alone; put them .*Job\.id\.in_\(select",
    ),
    "joined to another": ({"where": Send.invoice_id == Invoice.id}, "rows of invoices"),
    "alias": ({"where": ALIAS.subject == "Hi"}, "about an alias of jobs"),
    "other root": ({"where": Tick.subject == "Hi"}, "about rows of other_jobs"),
    "two kinds": (
        {"where": or_(Send.subject == "Hi", Call.number == "1")},
        "about (Send and Call|Call and Send), and no job is both",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unclear_cancel_is_refused(session: Session, case: str) -> None:
    """The error names what was given and what to do; nothing is cancelled."""
    options, message = REFUSED[case]
    job = make_job(session, Send, unique_key="k", fingerprint="f")

    with pytest.raises(JobValueError, match=message):
        request_cancel(session, Job, **options)

    assert state_of(session, job) == "available"


def test_condition_on_another_kind_is_refused(session: Session) -> None:
    """A class beside the condition's has no such jobs: likely a slip."""
    with pytest.raises(JobValueError, match="about Call and Send, and no job is both"):
        request_cancel(session, Call, where=Send.subject == "Hi")


def test_values_of_conditions_are_bound(session: Session) -> None:
    """A value never becomes SQL text, whatever it holds."""
    evil = "'; DROP TABLE jobs; --"
    job = add(session, Send(subject=evil))

    with sent(session) as statements:
        answer = request_cancel(session, Job, where=Send.subject == evil)

    assert answer.cancelled == (job,)
    assert "DROP" not in statements[-1]
