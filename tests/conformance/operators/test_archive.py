"""The archive: what retention moves there, what stays with it, and how it goes."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, Table, func, insert, select, true
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    JobState,
    JobValueError,
    history,
    purge,
    purge_archive,
)
from sqla_jobs._core.states import FINAL, LIVE
from sqla_jobs._store.retention import apply_retention
from sqla_jobs.models.columns import COLUMN_ORDER
from tests.conformance.enqueue_kit import in_schema, schema_for
from tests.conformance.factories import (
    DAY,
    LEASE,
    NOW,
    SECOND,
    Elsewhere,
    at_once,
    make_job,
    sent,
)
from tests.conformance.operators.kit import (
    MONTH,
    TABLES,
    Base,
    Filed,
    FiledReport,
    Invoice,
    Job,
    Report,
    Send,
    Tick,
    add,
    log_attempt,
    row_of,
)

OLD = NOW - 31 * DAY


def count(session: Session, table: Any) -> int:
    """Return how many rows a table has."""
    found = select(func.count()).select_from(table)
    return int(session.scalar(found) or 0)


def archived(session: Session) -> list[int]:
    """Return the ids in the archive."""
    return list(session.scalars(select(Job.Archived.id).order_by(Job.Archived.id)))


def filed(session: Session, state: str = "completed", **columns: Any) -> int:
    """Make an old job of a class that archives."""
    return make_job(session, Filed, state=state, finished_at=OLD, **columns)


# What moves


@pytest.mark.parametrize(
    ("state", "age"),
    [("completed", DAY), ("cancelled", 7 * DAY), ("discarded", MONTH)],
)
def test_old_job_moves_to_the_archive(
    session: Session, state: str, age: timedelta
) -> None:
    """At its class's age, to the second, with each of the library's columns."""
    columns = {
        "queue": "q",
        "channel": "c",
        "priority": 3,
        "attempt": 4,
        "lease_token": 4,
        "payload": {"a": [1]},
        "payload_bytes": b"\x00",
        "checkpoint": {"n": 1},
        "result": {"r": None},
        "progress": [1, 2],
        "unique_key": "k",
        "fingerprint": "f",
        "tags": ["t"],
        "meta": {"m": 1},
        "reason": "why",
        "last_error": "E",
        "lease": LEASE,
    }
    job = make_job(session, Filed, state=state, finished_at=NOW - age, **columns)
    young = make_job(session, Filed, state=state, finished_at=NOW - age + SECOND)
    before = row_of(session, job)

    assert apply_retention(session, TABLES, now=NOW) == 1

    kept = session.execute(select(TABLES.archive)).mappings().one()
    assert {name: kept[name] for name in COLUMN_ORDER} == {
        name: before[name] for name in COLUMN_ORDER
    }
    assert kept["archived_at"] is not None
    assert session.scalars(select(TABLES.table.c.id)).all() == [young]


def test_own_columns_are_kept_as_json(session: Session) -> None:
    """The application's columns are in `own`, by name, as JSON has them."""
    job = Filed(price=Decimal("1.50"), scan=b"\x01")
    made = add(session, job, state="completed", finished_at=OLD)

    apply_retention(session, TABLES, now=NOW)

    row = session.scalars(select(Job.Archived)).one()
    assert (row.id, row.kind, row.state) == (made, "filed", "completed")
    assert row.own == {"price": 1.5, "scan": "\\x01", "invoice_id": None}


def test_tables_of_its_own_go_with_a_job(session: Session) -> None:
    """Of a class with own tables, the columns of all of them are in `own`."""
    job = FiledReport(title="t", pages=7)
    add(session, job, state="completed", finished_at=OLD)

    assert apply_retention(session, TABLES, now=NOW) == 1

    own = session.scalars(select(Job.Archived.own)).one()
    assert (own["title"], own["pages"], own["price"]) == ("t", 7, None)
    assert "id" not in own
    for table in (TABLES.table, Report.__table__, FiledReport.__table__):
        assert count(session, table) == 0


def test_row_without_its_joined_row_moves_too(session: Session) -> None:
    """A row that lacks one in the subclass's table is not left behind."""
    job = make_job(session, FiledReport, state="completed", finished_at=OLD)

    assert apply_retention(session, TABLES, now=NOW) == 1

    assert archived(session) == [job]


def test_attempts_stay_with_archived_jobs(session: Session) -> None:
    """The history is there as long as the archive has the job."""
    job = filed(session)
    log_attempt(session, job, 1, error="E")

    apply_retention(session, TABLES, now=NOW)

    assert [one.error for one in history(session, Job, job)] == ["E"]


def test_class_that_does_not_archive_deletes(session: Session) -> None:
    """Both kinds of retention live side by side; parents don't decide."""
    deleted = make_job(session, Send, state="completed", finished_at=OLD)
    moved = filed(session)
    log_attempt(session, deleted, 1)

    assert apply_retention(session, TABLES, now=NOW) == 2

    assert archived(session) == [moved]
    assert count(session, TABLES.attempts) == 0


@pytest.mark.parametrize("state", sorted(LIVE))
def test_live_job_is_not_archived(session: Session, state: JobState) -> None:
    """However old."""
    make_job(session, Filed, state=state, run_at=OLD)

    assert apply_retention(session, TABLES, now=NOW) == 0

    assert archived(session) == []


def test_archiving_is_batched_oldest_first(session: Session) -> None:
    """A batch is a statement per state, age and own tables, whatever it moves."""
    jobs = [
        make_job(session, Filed, state="completed", finished_at=OLD - n * DAY)
        for n in range(5)
    ]

    assert apply_retention(session, TABLES, limit=2, now=NOW) == 2
    assert archived(session) == sorted(jobs[3:])
    with sent(session) as statements:
        assert apply_retention(session, TABLES, now=NOW) == 3
    assert archived(session) == sorted(jobs)
    assert len([s for s in statements if "jobs_archive" in s]) == 3 + 2


def test_archiving_skips_locked_rows(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job that somebody is writing is left for the next time."""
    busy, free = elsewhere(filed), elsewhere(filed)
    with sessions() as operator:
        table = TABLES.table
        operator.execute(table.update().where(table.c.id == busy).values(tags=["mine"]))

        assert elsewhere(apply_retention, TABLES, now=NOW) == 1
        assert elsewhere(archived) == [free]

        operator.commit()
    assert elsewhere(apply_retention, TABLES, now=NOW) == 1
    assert elsewhere(archived) == [busy, free]


def test_job_is_never_in_no_table(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Pruners at the same time move each job once; a reader sees each job once."""
    elsewhere(lambda session: [filed(session) for _ in range(200)])
    both = select(TABLES.table.c.id).union_all(select(TABLES.archive.c.id)).subquery()

    def move() -> int:
        moved = 0
        while found := elsewhere(apply_retention, TABLES, limit=10, now=NOW):
            moved += found
        return moved

    def read() -> int:
        for _ in range(50):
            assert elsewhere(count, both) == 200
        return 0

    moved = at_once([move, move, move, read])

    assert sum(moved) == 200
    assert len(elsewhere(archived)) == 200


def test_id_that_the_archive_has_stays(session: Session) -> None:
    """Ids that begin anew overwrite nothing and stop nobody."""
    job = filed(session)
    apply_retention(session, TABLES, now=NOW)
    filed(session, id=job, reason="second")
    other = filed(session)

    assert apply_retention(session, TABLES, now=NOW) == 1

    assert archived(session) == [job, other]
    assert row_of(session, job)["reason"] == "second"


def test_archive_is_that_of_its_root_and_schema(engine: Engine) -> None:
    """A tenant's jobs go to the tenant's archive."""
    with schema_for(Base, engine) as one, schema_for(Base, engine) as two:
        here, there = (in_schema(engine, name) for name in (one, two))
        for tenant in (here, there):
            with Session(tenant) as session, session.begin():
                filed(session)
        with Session(here) as session, session.begin():
            assert apply_retention(session, TABLES, now=NOW) == 1
            assert len(archived(session)) == 1
            assert count(session, Tick.__jobs__.archive) == 0
        with Session(there) as session:
            assert archived(session) == []


# How the archive is emptied


def keep(session: Session, kind: str, age: timedelta, queue: str = "q") -> int:
    """Store an archived job and an attempt of it."""
    table: Table = TABLES.archive
    columns = {c.name: c for c in table.c if not c.nullable and c.name != "own"}
    row: dict[str, Any] = dict.fromkeys(columns, 0) | {
        "id": count(session, table) + 1,
        "kind": kind,
        "queue": queue,
        "channel": "",
        "state": "completed",
        "run_at": NOW,
        "created_at": NOW,
        "backoff": "",
        "payload": {},
        "ordered": False,
        "archived_at": NOW - age,
    }
    session.execute(insert(table).values(row))
    log_attempt(session, row["id"], 1)
    return int(row["id"])


def test_purge_archive_goes_by_age_queue_and_kind(session: Session) -> None:
    """Each condition narrows what is deleted; attempts go with the jobs."""
    ids = {
        (kind, age, queue): keep(session, kind, age * DAY, queue)
        for kind in ("send", "call")
        for age in (0, 10)
        for queue in ("a", "b")
    }

    def purged(job_class: Any = Job, **options: Any) -> set[int]:
        with session.begin_nested() as savepoint:
            before = set(archived(session))
            given: dict[str, Any] = {"older_than": timedelta(0), "now": NOW}
            number = purge_archive(session, job_class, **given | options)
            gone = before - set(archived(session))
            left = set(session.scalars(select(TABLES.attempts.c.job_id)))
            assert left == before - gone
            assert len(gone) == number
            savepoint.rollback()
        return gone

    def those(kind: Any = None, age: Any = None, queue: Any = None) -> set[int]:
        wanted = (kind, age, queue)
        return {
            i
            for key, i in ids.items()
            if all(w in (None, k) for w, k in zip(wanted, key, strict=True))
        }

    assert purged() == those()
    assert purged(older_than=DAY) == those(age=10)
    assert purged(queues=["a"]) == those(queue="a")
    assert purged(kinds=["call"]) == those(kind="call")
    assert purged(Send) == those(kind="send")
    assert purged(Send, kinds=["call"]) == set()
    assert purged(limit=3) <= those(age=10)
    assert purged(queues=[]) == set()


def test_purge_archive_may_only_count(session: Session) -> None:
    """A dry run deletes nothing; jobs in the hot table are never meant."""
    for age in (0, 1, 2):
        keep(session, "send", age * DAY)
    filed(session)

    assert purge_archive(session, Job, older_than=DAY, dry_run=True, now=NOW) == 2

    assert len(archived(session)) == 3
    assert count(session, TABLES.table) == 1


def test_purge_of_jobs_spares_the_archive(session: Session) -> None:
    """What is archived stays until it is purged there."""
    keep(session, "send", 9 * DAY)
    filed(session)

    assert purge(session, Job, now=NOW) == 1

    assert len(archived(session)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"older_than": 7}, r"must be a timedelta, e\.g\. timedelta\(days=7\), got 7"),
        ({"older_than": DAY, "limit": 0}, "limit must be 1 to 10000, got 0"),
        ({"older_than": DAY, "queues": "mail"}, "queues must be a list of names"),
        ({"older_than": DAY, "kinds": "send"}, "kinds must be a list of names"),
    ],
)
def test_bad_purge_of_the_archive_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """The error says what is wrong, and nothing is deleted."""
    keep(session, "send", 9 * DAY)

    with pytest.raises(JobValueError, match=message):
        purge_archive(session, Job, **options)

    assert len(archived(session)) == 1


# Purge, singly and by condition


def test_purge_by_ids_and_condition(session: Session) -> None:
    """Dead letters are deleted singly or by filter; all conditions must hold."""
    ids = [add(session, Send(subject=s), state="discarded") for s in "abc"]
    report = add(session, Report(title="t"), state="discarded")
    live = add(session, Send(subject="a"))

    assert purge(session, Job, ids=ids[0], where=Send.subject == "b") == 0
    assert purge(session, Job, ids=[ids[0], live], now=NOW + MONTH) == 1
    dead: dict[str, Any] = {"states": ["discarded"], "now": NOW + MONTH}
    assert purge(session, Job, where=Send.subject.in_(["a", "b"]), **dead) == 1
    assert purge(session, Job, where=Report.title == "t", **dead) == 1
    assert set(session.scalars(select(TABLES.table.c.id))) == {ids[2], live}
    assert report not in {ids[2], live}


def test_purge_where_through_a_relationship(session: Session) -> None:
    """Other tables are asked in subqueries, and their rows stay."""
    jobs = [
        add(session, Send(invoice=Invoice(paid=paid)), state="discarded")
        for paid in (True, False)
    ]

    gone = purge(session, Send, where=Send.invoice.has(Invoice.paid), now=NOW + MONTH)

    assert gone == 1
    assert session.scalars(select(TABLES.table.c.id)).all() == jobs[1:]
    assert count(session, Invoice) == 2


def test_purge_may_only_count(session: Session) -> None:
    """A dry run tells what a call would delete, limit included, and deletes nothing."""
    for state in sorted(FINAL):
        for _ in range(3):
            make_job(session, Send, state=state)

    def tried(**options: Any) -> int:
        return purge(session, Job, dry_run=True, now=NOW, **options)

    assert tried() == 9
    assert tried(limit=2) == 2
    assert tried(states=["discarded"]) == 3
    assert tried(where=Job.state == "completed") == 3
    assert tried(ids=[]) == 0
    assert count(session, TABLES.table) == 9


def test_purge_where_never_deletes_running_jobs(session: Session) -> None:
    """Whatever the condition says."""
    job = make_job(session, Send, state="running")

    assert purge(session, Job, where=true(), now=NOW + MONTH) == 0
    assert purge(session, Job, ids=job, now=NOW + MONTH) == 0
    with pytest.raises(JobValueError, match="does not delete running jobs"):
        purge(session, Job, where=true(), states=["running"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "true"}, "where='true' is no condition"),
        ({"where": Invoice.paid.is_(True)}, "rows of invoices, not of Job alone"),
        ({"ids": "1"}, "ids must be a list"),
        ({"older_than": 3}, "older_than must be a timedelta"),
    ],
)
def test_bad_purge_by_condition_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """The error says what is wrong, and nothing is deleted."""
    make_job(session, Send, state="discarded")

    with pytest.raises(JobValueError, match=message):
        purge(session, Job, **options)

    assert count(session, TABLES.table) == 1
