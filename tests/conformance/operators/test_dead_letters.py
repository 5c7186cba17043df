"""Dead letters are listed newest first, page by page, with their history."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    JobState,
    JobValueError,
    dead_letters,
    history,
    purge,
    requeue,
)
from tests.conformance.factories import DAY, NOW, SECOND, fill, make_job
from tests.conformance.operators.kit import (
    Call,
    Invoice,
    Job,
    Report,
    Send,
    Urgent,
    add,
    log_attempt,
)
from tests.conformance.test_plans import plans


def dead(session: Session, job: Any = None, **columns: Any) -> int:
    """Store a dead letter and return its id."""
    given = {"state": "discarded", "finished_at": NOW, **columns}
    return add(session, job or Send(), **given)


def ids(session: Session, job_class: Any = Job, **options: Any) -> list[int]:
    """Return the ids of the dead letters."""
    return [job.id for job in dead_letters(session, job_class, **options)]


def test_only_discarded_jobs_are_dead_letters(session: Session) -> None:
    """Each other state is left out; the newest come first."""
    for state in set(JobState) - {JobState.DISCARDED}:
        make_job(session, Send, state=state)
    first, second = dead(session), dead(session)

    assert ids(session) == [second, first]


def test_dead_letters_are_mapped_instances(session: Session) -> None:
    """Of their own classes, with arguments and columns of joined tables loaded."""
    dead(session, Report(title="t"))
    dead(session, Send(subject="Hi"))
    make_job(session, Send, kind="elsewhere", state="discarded")
    session.expunge_all()

    letters: list[Any] = dead_letters(session, Job)

    unmapped, sent, report = letters
    assert [type(job) for job in (unmapped, sent, report)] == [Job, Send, Report]
    assert (sent.subject, report.title) == ("Hi", "t")


def test_dead_letters_are_filtered(session: Session) -> None:
    """Each condition narrows the list; all must hold."""
    mail = dead(session, Send(subject="a"), reason="attempts used up")
    urgent = dead(session, Urgent(subject="b"), finished_at=NOW - DAY)
    call = dead(session, Call(number="1"), reason="poison: 3 crashes", queue="tel")
    report = dead(session, Report(title="t"), last_error="ConnectionError: x")
    everything = [report, call, urgent, mail]

    assert ids(session) == everything
    assert ids(session, Send) == [urgent, mail]
    assert ids(session, Urgent) == [urgent]
    assert ids(session, queues=["tel"]) == [call]
    assert ids(session, queues=[]) == []
    assert ids(session, kinds=["send", "call"]) == [call, mail]
    assert ids(session, Send, kinds=["call"]) == []
    assert ids(session, reason="poison") == [call]
    assert ids(session, reason="%") == []
    assert ids(session, since=NOW) == [report, call, mail]
    assert ids(session, since=NOW + SECOND) == []
    assert ids(session, where=Send.subject == "a") == [mail]
    assert ids(session, where=Report.title == "t") == [report]
    errors = Job.last_error.startswith("ConnectionError")
    assert ids(session, where=errors) == [report]
    assert ids(session, where=errors, queues=["tel"]) == []


def test_dead_letters_come_in_pages(session: Session) -> None:
    """The next page begins after the last one's id, whatever became of its job."""
    made = [dead(session) for _ in range(7)][::-1]

    first = ids(session, limit=3)
    requeue(session, Job, first[:2])
    purge(session, Job, ids=first[2], now=NOW)
    second = ids(session, limit=3, before_id=first[-1])
    third = ids(session, limit=3, before_id=second[-1])

    assert first + second + third == made
    assert ids(session, before_id=made[-1]) == []


def test_fifty_dead_letters_by_default(session: Session) -> None:
    """A list is for somebody who reads it."""
    for _ in range(51):
        make_job(session, Send, state="discarded")

    assert len(ids(session)) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be 1 to 10000, got 0"),
        ({"queues": "mail"}, "queues must be a list of names"),
        ({"kinds": "send"}, "kinds must be a list of names"),
        ({"since": NOW.replace(tzinfo=None)}, "since=.* is naive; give it a time zone"),
        ({"since": "today"}, "since='today' must be a datetime"),
        ({"reason": 3}, "reason must be a text, got 3"),
        ({"before_id": "7"}, "ids must be a list of ids of jobs, got '7'"),
        ({"where": Invoice.paid.is_(True)}, "rows of invoices, not of Job alone"),
    ],
)
def test_bad_list_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """The error says what is wrong."""
    with pytest.raises(JobValueError, match=message):
        dead_letters(session, Job, **options)


def test_history_is_in_order_and_of_one_job(session: Session) -> None:
    """Every attempt that did not complete, as mapped rows; none is no error."""
    job, other = dead(session), dead(session)
    for token in (2, 1, 3):
        log_attempt(session, job, token, error=f"E{token}", traceback="in run")
    log_attempt(session, other, 1)

    found = history(session, Job, job)

    assert all(isinstance(one, Job.Attempt) for one in found)
    assert [(one.number, one.error) for one in found] == [
        (1, "E1"),
        (2, "E2"),
        (3, "E3"),
    ]
    assert history(session, Send, 999_999) == []
    with pytest.raises(JobValueError, match="ids must be a list"):
        history(session, Job, "1")  # type: ignore[arg-type]


def test_pages_are_requeued_or_deleted_atomically(
    sessions: sessionmaker[Session],
) -> None:
    """What one transaction does to a page is undone with it."""
    with sessions.begin() as session:
        made = [dead(session) for _ in range(4)]
    with sessions() as session:
        page = ids(session)
        requeue(session, Job, page[:2], changes={"queue": "x"})
        purge(session, Job, ids=page[2:], now=NOW + DAY)
        session.rollback()

        assert ids(session) == made[::-1]
        assert set(session.scalars(select(Job.queue))) == {"mail"}


def test_old_dead_letters_are_not_looked_for_by_id(
    job_engine: Engine, sessions: sessionmaker[Session]
) -> None:
    """The jobs that came after them are not read, however many there are."""
    with sessions.begin() as session:
        fill(session, 300, state="discarded", finished_at=NOW)
        fill(session, 20_000, state="completed", finished_at=NOW)
    with sessions.begin() as session:
        session.execute(text("ANALYZE"))

    def work(session: Session) -> None:
        dead_letters(session, Job, limit=3)

    (plan,) = plans(job_engine, "force_custom_plan", work)

    assert "finished_v1_idx" in plan.indexes()
    assert plan.most_rows() <= 300
    assert plan.returned == 3
