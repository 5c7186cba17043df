"""Requeue dead letters by a condition, and change jobs while they are requeued."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, true
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    DuplicateJob,
    JobState,
    JobValueError,
    PayloadError,
    RequeueResult,
    constant,
    dead_letters,
    history,
    requeue,
)
from sqla_jobs._store.claim import claim
from tests.conformance.enqueue_kit import Ear
from tests.conformance.factories import (
    DAY,
    NOW,
    SECOND,
    Elsewhere,
    at_once,
    freed_when_awaited,
    make_job,
)
from tests.conformance.operators.kit import (
    TABLES,
    Call,
    Invoice,
    Job,
    Keyed,
    Report,
    Send,
    Urgent,
    add,
    log_attempt,
    row_of,
)

DEAD: dict[str, Any] = {"state": "discarded", "finished_at": NOW, "attempt": 3}


def dead(session: Session, job: Any = None, **columns: Any) -> int:
    """Store a dead letter and return its id."""
    return add(session, job or Send(), **(DEAD | columns))


# By a condition


def test_requeue_where_takes_dead_letters_only(session: Session) -> None:
    """Completed and cancelled jobs that meet the condition stay as they are."""
    ids = {state: make_job(session, Send, state=state) for state in JobState}

    answer = requeue(session, Job, where=Job.queue == "default", now=NOW)

    assert answer == RequeueResult((ids[JobState.DISCARDED],), (), ())
    for state in set(JobState) - {JobState.DISCARDED}:
        assert row_of(session, ids[state])["state"] == state


def test_requeue_where_goes_by_class_and_arguments(session: Session) -> None:
    """Arguments, columns of joined tables and relationships may be asked."""
    hi, urgent = dead(session, Send(subject="Hi")), dead(session, Urgent(subject="Hi"))
    report = dead(session, Report(title="a"))
    paid = dead(session, Send(invoice=Invoice(paid=True)))
    dead(session, Report(title="b"))
    stranger = make_job(session, Call, state="discarded", payload={"subject": "Hi"})

    assert requeue(session, Urgent, where=Send.subject == "Hi").requeued == (urgent,)
    assert requeue(session, Job, where=Send.subject == "Hi").requeued == (hi,)
    assert requeue(session, Job, where=Report.title == "a").requeued == (report,)
    assert requeue(session, Send, where=Send.invoice.has(Invoice.paid)).requeued == (
        paid,
    )
    assert row_of(session, stranger)["state"] == "discarded"


def test_requeue_where_is_batched_lowest_ids_first(session: Session) -> None:
    """Calls with a limit get through all of them, each once."""
    jobs = [dead(session) for _ in range(7)]

    parts = [requeue(session, Job, where=true(), limit=3).requeued for _ in range(4)]

    assert parts == [tuple(jobs[:3]), tuple(jobs[3:6]), (jobs[6],), ()]


def test_requeue_where_is_not_held_up_by_taken_keys(session: Session) -> None:
    """Jobs whose key is taken are listed and do not use up the limit."""
    taken = [dead(session, Send(), unique_key=key) for key in "ab"]
    for key in "ab":
        make_job(session, Send, unique_key=key)
    free = dead(session)
    twins = [dead(session, Send(), unique_key="t") for _ in range(2)]

    first = requeue(session, Job, where=true(), limit=1)
    rest = requeue(session, Job, where=true(), limit=10)

    assert first == RequeueResult((free,), (taken[0],), ())
    assert rest == RequeueResult((twins[0],), (*taken, twins[1]), ())


def test_requeues_by_condition_share_the_jobs(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Operators at the same time requeue each job once, and nobody fails."""
    for _ in range(5):
        jobs = elsewhere(lambda session: [dead(session) for _ in range(60)])

        answers = at_once([lambda: elsewhere(requeue, Job, where=Send.copies == 1)] * 4)

        done = sorted(i for answer in answers for i in answer.requeued)
        assert done == jobs


def test_requeue_where_spares_what_changed_meanwhile(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job that no longer meets the condition when its lock is free stays dead."""
    job = elsewhere(dead)
    with sessions() as editor, sessions() as operator:
        editor.execute(TABLES.table.update().values(queue="new"))

        with freed_when_awaited(operator, editor):
            answer = requeue(operator, Job, where=Job.queue == "mail")
        operator.commit()

    assert answer == RequeueResult((), (), ())
    assert elsewhere(row_of, job)["state"] == "discarded"


def test_requeue_of_a_class_spares_other_kinds(session: Session) -> None:
    """Ids of other kinds are unchanged."""
    mine, other = dead(session, Urgent()), make_job(session, Call, state="discarded")

    assert requeue(session, Send, [mine, other]) == RequeueResult((mine,), (), (other,))


def test_requeued_job_keeps_its_history(session: Session) -> None:
    """Same id, fresh attempts, and the attempts of before stay to be read."""
    job = dead(session, Send(), lease_token=2)
    for token in (1, 2):
        log_attempt(session, job, token, error=f"E{token}")

    requeue(session, Job, job, now=NOW)
    (again,) = claim(session, Job, now=NOW)
    log_attempt(session, job, again.token, number=again.attempt, error="E3")

    assert (again.job_id, again.attempt, again.token) == (job, 1, 3)
    found = history(session, Job, job)
    assert [(one.number, one.error) for one in found] == [
        (1, "E1"),
        (2, "E2"),
        (1, "E3"),
    ]


def test_requeue_wakes_runners(
    job_engine: Engine, sessions: sessionmaker[Session]
) -> None:
    """At the commit; not for a job that is to run later."""
    ear = Ear(job_engine)
    try:
        with sessions.begin() as session:
            job = make_job(session, Send, state="discarded")
        with sessions.begin() as session:
            requeue(session, Job, job, changes={"delay": DAY})
        assert ear.heard() == 0
        with sessions.begin() as session:
            later = make_job(session, Send, state="discarded")
            requeue(session, Job, later)
        assert ear.heard() == 1
    finally:
        ear.close()


def test_requeued_hold_is_no_hold(session: Session) -> None:
    """A job that was cancelled because nobody confirmed it is an ordinary one then."""
    job = make_job(session, Send, state="cancelled", held_until=NOW)

    requeue(session, Job, job, now=NOW)

    row = row_of(session, job)
    assert (row["state"], row["held_until"]) == ("available", None)


# With changes


def by_id(session: Session, job: int, changes: dict[str, Any]) -> RequeueResult:
    """Requeue one job of `Send` with changes."""
    return requeue(session, Send, job, changes=changes, now=NOW)


def by_filter(session: Session, job: int, changes: dict[str, Any]) -> RequeueResult:
    """Do the same by a condition."""
    return requeue(session, Job, where=Send.id == job, changes=changes, now=NOW)


BOTH = pytest.mark.parametrize("way", [by_id, by_filter])
Way = Callable[[Session, int, dict[str, Any]], RequeueResult]


@BOTH
def test_changes_are_made_with_the_requeue(session: Session, way: Way) -> None:
    """Columns, arguments and the application's own columns get their new values."""
    invoice = Invoice()
    session.add(invoice)
    session.flush()
    job = dead(session, Send(subject="Hi", copies=2, payload={"beside": 1}))
    changes = {
        "queue": "slow",
        "channel": "c",
        "priority": 7,
        "max_attempts": 2,
        "backoff": constant(5 * SECOND),
        "timeout": 60 * SECOND,
        "lease": None,
        "tags": ["again"],
        "meta": {"by": "me"},
        "fingerprint": "f",
        "payload_bytes": b"\x00",
        "subject": "Ho",
        "invoice_id": invoice.id,
    }

    assert way(session, job, changes).requeued == (job,)

    row = row_of(session, job)
    assert (row["state"], row["attempt"], row["run_at"]) == ("available", 0, NOW)
    assert row["payload"] == {"subject": "Ho", "copies": 2, "beside": 1}
    assert row["backoff"] == constant(5 * SECOND).spec()
    plain = changes.keys() - {"subject", "backoff"}
    assert {name: row[name] for name in plain} == {n: changes[n] for n in plain}


@BOTH
@pytest.mark.parametrize("change", [{"run_at": NOW + DAY}, {"delay": DAY}])
def test_requeue_may_be_for_later(
    session: Session, way: Way, change: dict[str, Any]
) -> None:
    """With a time the job waits for it, counted by the database's clock."""
    job = dead(session)

    way(session, job, change)

    row = row_of(session, job)
    assert (row["state"], row["run_at"]) == ("scheduled", NOW + DAY)


def test_payload_change_replaces_all_of_it(session: Session) -> None:
    """Arguments beside it are put on top; each job of a filter gets the same."""
    jobs = [dead(session, Send(subject=str(i), copies=i)) for i in range(3)]
    changes = {"payload": {"subject": "new", "x": [1]}, "copies": 9}

    answer = requeue(session, Send, where=Send.copies > 0, changes=changes)

    assert answer.requeued == tuple(jobs[1:])
    for job in jobs[1:]:
        payload = row_of(session, job)["payload"]
        assert payload == {"subject": "new", "x": [1], "copies": 9}
    assert row_of(session, jobs[0])["payload"] == {"subject": "0", "copies": 0}
    requeue(session, Job, jobs[0], changes={"payload": {}})
    assert row_of(session, jobs[0])["payload"] == {}


def test_argument_change_applies_to_each(session: Session) -> None:
    """Each job keeps the rest of its own payload."""
    jobs = [dead(session, Send(subject=str(i))) for i in range(3)]

    requeue(session, Job, where=Send.subject != "", changes={"copies": 5})

    found = [row_of(session, job)["payload"] for job in jobs]
    assert found == [{"subject": str(i), "copies": 5} for i in range(3)]


def test_only_requeued_jobs_are_changed(session: Session) -> None:
    """A live job, and one whose key is taken, keep what they have."""
    live = make_job(session, Send, unique_key="k")
    taken = dead(session, Send(), unique_key="k")

    answer = requeue(session, Job, [live, taken], changes={"priority": 9})

    assert answer == RequeueResult((), (taken,), (live,))
    assert [row_of(session, job)["priority"] for job in (live, taken)] == [0, 0]
    with pytest.raises(DuplicateJob):
        requeue(session, Job, taken, changes={"priority": 9})


REFUSED: dict[str, tuple[type[Any], dict[str, Any], str]] = {
    "unknown": (
        Send,
        {"qeue": "x"},
        "Send: unknown change 'qeue'; did you mean 'queue'",
    ),
    "argument of none": (Job, {"subject": "x"}, "Job: unknown change 'subject'"),
    "library's": (
        Send,
        {"state": "running"},
        "has 'state': a requeue cannot change it",
    ),
    "key": (Send, {"unique_key": "x"}, "has 'unique_key': a requeue cannot change it"),
    "order": (Send, {"ordered": True}, "has 'ordered': a requeue cannot change it"),
    "id": (Send, {"id": 3}, "has 'id': a requeue cannot change it"),
    "relationship": (Send, {"invoice": None}, "'invoice': a related object; give its"),
    "own table": (Report, {"title": "x"}, r"'title': a column .* use update\(Report\)"),
    "empty queue": (Send, {"queue": ""}, r"Send\(queue=''\) must not be empty"),
    "priority": (Send, {"priority": 10**6}, "must be an integer from -32768"),
    "attempts": (Send, {"max_attempts": 0}, "must be an integer of 1 or more"),
    "naive": (Send, {"run_at": NOW.replace(tzinfo=None)}, "is naive; give it a time"),
    "both": (Send, {"run_at": NOW, "delay": DAY}, "takes run_at= or delay=, not both"),
    "tags": (Send, {"tags": "x"}, "must be a list of str"),
    "list": (Send, {"payload": [1]}, r"payload=\[1\], which must be a dict"),
    "no payload": (Send, {"payload": None}, "payload=None, which must be a dict"),
    "type": (Send, {"copies": "many"}, r"Send\.copies"),
    "no JSON": (Send, {"payload": {"x": {1}}}, r"Send\.payload"),
    "large": (Send, {"subject": "x" * 1_000_001}, r"Send\.payload"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("by", ["id", "filter"])
def test_bad_change_is_refused(session: Session, case: str, by: str) -> None:
    """The error names the change; the job stays dead, the transaction usable."""
    job_class, changes, message = REFUSED[case]
    job = dead(session, Report() if job_class is Report else Send())
    given = {"ids": job} if by == "id" else {"where": Job.id == job}

    with pytest.raises(JobValueError, match=message):
        requeue(session, job_class, **given, changes=changes)

    assert row_of(session, job)["state"] == "discarded"


def test_payload_that_a_class_cannot_read_is_refused(session: Session) -> None:
    """The classes of the jobs decide, also when the root was given; all stay dead."""
    jobs = [dead(session, Send()), dead(session, Call(number="1"))]

    for payload, message in (
        ({}, r"Call\.number: the payload has no key 'number'"),
        ({"number": 3}, r"Call\.number"),
        ({"number": "1", "copies": "many"}, r"Send\.copies"),
    ):
        with pytest.raises(PayloadError, match=message):
            requeue(session, Job, jobs, changes={"payload": payload})

    found = select(TABLES.table.c.state, func.count()).group_by(TABLES.table.c.state)
    assert session.execute(found).all() == [("discarded", 2)]
    answer = requeue(session, Job, jobs, changes={"payload": {"number": "2"}})
    assert answer.requeued == tuple(jobs)


def test_payload_of_a_kind_nobody_maps_may_be_changed(session: Session) -> None:
    """What reads it is elsewhere."""
    job = make_job(session, Send, kind="elsewhere", state="discarded")

    requeue(session, Job, job, changes={"payload": {"x": 1}})

    assert row_of(session, job)["payload"] == {"x": 1}


def test_part_of_a_computed_key_is_not_changed(session: Session) -> None:
    """The key would say something else than the job; without a key it may change."""
    job = dead(session, Keyed(number="1"), unique_key="computed")
    without = dead(session, Keyed(number="1"), unique_key=None)

    for changes, part in (
        ({"number": "2"}, "args"),
        ({"payload": {"number": "2"}}, "args"),
        ({"queue": "x", "priority": 3}, "queue"),
    ):
        with pytest.raises(JobValueError, match=f"key of Keyed: {part}; enqueue"):
            requeue(session, Keyed, job, changes=changes)
        assert row_of(session, job)["state"] == "discarded"

    assert requeue(session, Keyed, job, changes={"priority": 3}).requeued == (job,)
    answer = requeue(session, Keyed, without, changes={"number": "2"})
    assert answer.requeued == (without,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"requeue\(\) takes exactly one of ids and where; got none"),
        ({"ids": 1, "where": true()}, "got ids and where"),
        ({"where": true(), "limit": 0}, "limit must be 1 to 10000, got 0"),
        ({"where": Invoice.paid.is_(True)}, "about rows of invoices, not of Job alone"),
        ({"where": "true"}, "where='true' is no condition"),
        ({"ids": "1"}, "ids must be a list"),
    ],
)
def test_unclear_requeue_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """The error says what was given; nothing is requeued."""
    job = dead(session)

    with pytest.raises(JobValueError, match=message):
        requeue(session, Job, **options)

    assert row_of(session, job)["state"] == "discarded"


def test_edited_dead_letter_is_claimed_as_edited(session: Session) -> None:
    """The whole way: listed, edited, requeued, claimed from its new queue."""
    dead(session, Send(subject="bad"), reason="attempts used up")
    (letter,) = dead_letters(session, Send, reason="used up")

    requeue(
        session, Send, letter.id, changes={"subject": "good", "queue": "x"}, now=NOW
    )

    (claimed,) = claim(session, Job, queues=["x"], now=NOW + timedelta(seconds=1))
    assert (claimed.job_id, claimed.payload["subject"]) == (letter.id, "good")
    assert dead_letters(session, Send) == []
