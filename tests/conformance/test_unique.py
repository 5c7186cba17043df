"""Unique keys in a flush: one live job per key, and a transaction that goes on."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Text, event, func, insert, select, text
from sqlalchemy import inspect as state_of
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

from sqla_jobs import Arg, DuplicateJob, JobDefinitionError, JobMixin, JobValueError
from sqla_jobs._core.states import CANCELLABLE, FINAL, LIVE, JobState
from sqla_jobs._store import locks
from sqla_jobs._store.wake import forget_recent
from sqla_jobs.models import job_tables
from tests.conformance.enqueue_kit import executed, in_schema, schema_for
from tests.conformance.factories import NOW, make_job


class Base(DeclarativeBase):
    """The application's."""


class Invoice(Base):
    """A domain class that knows its jobs."""

    __tablename__ = "invoices"

    id: Mapped[int] = mapped_column(primary_key=True)
    jobs: Mapped[list[Send]] = relationship(back_populates="invoice")


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "jobs"


class Ping(Job):
    """Has no key of its own."""


class Index(Job, unique="args", on_conflict="skip"):
    """One per document."""

    document: Arg[int]
    color: Arg[str] = "red"  # type: ignore[assignment]


class Send(Job, unique=("queue", "channel", "invoice_id", "note", "at")):
    """One per invoice, and more."""

    invoice_id: Mapped[int | None] = mapped_column(ForeignKey("invoices.id"))
    invoice: Mapped[Invoice | None] = relationship(back_populates="jobs")
    note: Mapped[str | None] = mapped_column(Text, default="plain")
    at: Mapped[datetime | None] = mapped_column()
    made: Mapped[str | None] = mapped_column(server_default="x")


class Report(Job, unique=("title",)):
    """Has a table of its own."""

    __tablename__ = "reports"

    title: Mapped[str]


@pytest.fixture(scope="module")
def schema(engine: Engine) -> Iterator[str]:
    """Yield the schema of this module's tables."""
    with schema_for(Base, engine) as name:
        yield name


@pytest.fixture
def db(engine: Engine, schema: str) -> Iterator[Engine]:
    """Yield an engine on empty tables; no wake-up is remembered."""
    own: Engine = in_schema(engine, schema)
    forget_recent()
    yield own
    with own.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def session(db: Engine) -> Iterator[Session]:
    """Yield a session on empty tables."""
    with Session(db) as session:
        yield session


def committed(session: Session, job: Any) -> int:
    """Return the id of a job that is committed."""
    session.add(job)
    session.commit()
    return int(job.id)


def states(session: Session) -> list[str]:
    """Return the states of all jobs, by id."""
    table = Job.__table__
    return list(session.scalars(select(table.c.state).order_by(table.c.id)))


def test_duplicate_raises_and_the_transaction_goes_on(session: Session) -> None:
    """The error comes before any INSERT; what else is new is still enqueued."""
    first = committed(session, Ping(unique_key="k"))
    other, double = Ping(), Ping(unique_key="k")
    session.add_all([other, double])

    with pytest.raises(DuplicateJob, match=f"job {first} .available.*'k'") as caught:
        session.flush()

    assert (caught.value.unique_key, caught.value.job_id) == ("k", first)
    assert double not in session
    assert other in session.new
    session.commit()
    assert states(session) == ["available", "available"]


@pytest.mark.parametrize("state", sorted(LIVE))
def test_live_job_holds_its_key(session: Session, state: JobState) -> None:
    """Each state that is not final holds the key, also with a request to cancel."""
    until = {"held_until": NOW} if state == "held" else {}
    values = {"unique_key": "k", "cancel_requested_at": NOW, "kind": "ping", **until}
    first = make_job(session, Job, state=state, **values)
    job = Ping(unique_key="k", on_conflict="skip")
    session.add(job)
    session.flush()

    assert job.duplicate_of == first
    assert states(session) == [state]


@pytest.mark.parametrize("state", sorted(FINAL))
def test_final_job_frees_its_key(session: Session, state: JobState) -> None:
    """A job that ended, however, gives its key to the next."""
    make_job(session, Job, state=state, unique_key="k", kind="ping")
    session.add(Ping(unique_key="k"))
    session.flush()

    assert states(session) == [state, "available"]


def test_new_final_job_needs_no_key(session: Session) -> None:
    """A job that is added as history, already final, is nobody's duplicate."""
    committed(session, Ping(unique_key="k"))
    old = Ping(unique_key="k")
    old.state = "completed"
    session.add_all([old])
    session.commit()

    assert states(session) == ["available", "completed"]


@pytest.mark.parametrize("policy", ["skip", "return"])
def test_skipped_job_leaves_the_session(session: Session, policy: str) -> None:
    """It is not inserted and knows in whose favour; an inserted one knows of none."""
    first = committed(session, Ping(unique_key="k"))
    job, other = Ping(unique_key="k", on_conflict=policy), Ping(unique_key="j")
    session.add_all([job, other])
    session.commit()

    assert state_of(job).transient
    assert job.duplicate_of == first
    assert other.duplicate_of is None
    assert states(session) == ["available", "available"]


@pytest.mark.parametrize("state", sorted(CANCELLABLE))
def test_replaced_job_is_cancelled(session: Session, state: JobState) -> None:
    """A live job that is not running makes room, and its row says why."""
    until = {"held_until": NOW} if state == "held" else {}
    first = make_job(session, Job, state=state, unique_key="k", kind="ping", **until)
    job = Ping(unique_key="k", on_conflict="replace")
    session.add(job)
    session.commit()

    assert states(session) == ["cancelled", "available"]
    row = session.get_one(Job, first)
    assert row.reason == "replaced by a newer job"
    assert row.finished_at is not None
    assert job.duplicate_of is None


def test_running_job_is_not_replaced(session: Session) -> None:
    """It raises, and then nothing else of the flush is replaced either."""
    make_job(session, Job, state="available", unique_key="j", kind="ping")
    first = make_job(session, Job, state="running", unique_key="k", kind="ping")
    other = Ping(unique_key="j", on_conflict="replace")
    job = Ping(unique_key="k", on_conflict="replace")
    session.add_all([other, job])

    with pytest.raises(DuplicateJob, match="running") as caught:
        session.flush()

    assert caught.value.job_id == first
    session.expunge(other)
    session.commit()
    assert states(session) == ["available", "running"]


def test_refusal_replaces_nothing(session: Session) -> None:
    """A job that raises leaves the one alone that another new job would replace."""
    for key in "jk":
        make_job(session, Job, unique_key=key, kind="ping")
    other = Ping(unique_key="j", on_conflict="replace")
    session.add_all([other, Ping(unique_key="k")])

    with pytest.raises(DuplicateJob):
        session.flush()

    session.expunge(other)
    assert states(session) == ["available", "available"]


def test_duplicates_inside_a_flush(session: Session) -> None:
    """With "skip" the first wins, with "replace" the last; the others know it."""
    first, second = (Ping(unique_key="j", on_conflict="skip") for _ in range(2))
    third, fourth = (Ping(unique_key="k", on_conflict="replace") for _ in range(2))
    session.add_all([first, second, third, fourth])
    session.commit()

    assert states(session) == ["available", "available"]
    assert second.duplicate_of == first.id
    assert third.duplicate_of == fourth.id


def test_duplicate_inside_a_flush_raises(session: Session) -> None:
    """With "raise" the second one is refused; the first is there after a commit."""
    session.add_all([Ping(unique_key="k"), Ping(unique_key="k")])

    with pytest.raises(DuplicateJob, match="another new job") as caught:
        session.flush()

    assert caught.value.job_id is None
    session.commit()
    assert states(session) == ["available"]


def test_jobs_without_keys_cost_no_statement(db: Engine, session: Session) -> None:
    """Without a key it is the INSERT and the wake-up, as if there were no keys."""
    with executed(db) as seen:
        session.add_all([Ping(), Ping(fingerprint="f")])
        session.commit()

    assert seen == ["INSERT", "INSERT", "NOTIFY"]


@pytest.mark.parametrize("policies", [["raise"], ["replace"], ["skip", "replace"]])
def test_keys_cost_two_statements_per_flush(
    db: Engine, session: Session, policies: list[str]
) -> None:
    """However many keys there are, it is one for the locks and one to look."""
    for number in range(3):
        make_job(session, Job, unique_key=f"{number}", kind="ping")
    session.commit()
    session.add_all(
        Ping(unique_key=f"{i if policy != 'raise' else -i - 1}", on_conflict=policy)
        for i in range(5)
        for policy in policies
    )
    with executed(db) as seen:
        session.commit()

    looks = [word for word in seen if word not in {"INSERT", "NOTIFY"}]
    assert looks == ["SELECT", "WITH" if "replace" in policies else "SELECT"]
    assert seen.count("INSERT") == 1


def test_flush_of_other_objects_looks_at_no_key(db: Engine, session: Session) -> None:
    """A job that is there already is not looked up again when others are flushed."""
    session.add(Ping(unique_key="k"))
    session.flush()
    with executed(db) as seen:
        session.add(Invoice())
        session.flush()

    assert seen == ["INSERT"]


def test_more_than_a_thousand_keys_take_one_lock(
    db: Engine, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many keys, at once or one after the other, take few of the server's locks."""
    monkeypatch.setattr("sqla_jobs._store.unique.MOST_NAMES", 10)
    monkeypatch.setattr(locks, "MOST_NAMES", 10)
    counting = text(
        "SELECT count(*) FROM pg_locks"
        " WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    )
    session.add_all(Ping(unique_key=f"{number}") for number in range(10))
    session.flush()
    few = session.scalar(counting)
    for number in range(3):
        session.add(Ping(unique_key=f"more {number}"))
        session.flush()
    # The whole space is one lock, shared before and alone after.
    assert (few, session.scalar(counting)) == (11, 12)
    session.rollback()
    session.add_all(Ping(unique_key=f"{number}") for number in range(11))
    session.flush()

    assert session.scalar(counting) == 1
    with Session(db) as other:
        other.execute(text("SET LOCAL lock_timeout = '100ms'"))
        other.add(Ping(unique_key="unrelated"))
        with pytest.raises(Exception, match="lock timeout"):
            other.flush()


def test_class_computes_the_key_of_the_arguments(session: Session) -> None:
    """Equal arguments are one job, whatever the queue; the class says what then."""
    first = committed(session, Index(document=1))
    same, other = Index(document=1, queue="slow"), Index(document=2)
    session.add_all([same, other])
    session.commit()

    assert same.duplicate_of == first
    assert other.duplicate_of is None
    assert str(other.unique_key).startswith("index:")


def test_own_key_wins_over_the_computed_one(session: Session) -> None:
    """A job with a key of its own is a duplicate by that one only."""
    session.add_all([Index(document=1), Index(document=1, unique_key="k")])
    session.commit()
    again = Index(document=2, unique_key="k")
    session.add(again)
    session.commit()

    assert again.duplicate_of is not None
    assert states(session) == ["available", "available"]


def test_key_of_columns_and_relationships(session: Session) -> None:
    """Each named column counts, with its default, and a related object's key."""
    invoice = Invoice()
    session.add(invoice)
    session.flush()
    session.add(Send(invoice=invoice))
    session.flush()
    different = [
        Send(),
        Send(invoice=invoice, note="b"),
        Send(invoice=invoice, queue="b"),
        Send(invoice=invoice, channel="b"),
        Send(invoice=invoice, at=datetime(2030, 1, 1)),  # noqa: DTZ001
    ]
    session.add_all(different)
    session.flush()
    equal = [
        Send(invoice_id=invoice.id, on_conflict="skip"),
        Send(invoice=invoice, note="plain", priority=5, on_conflict="skip"),
    ]
    session.add_all(equal)
    session.commit()

    assert [job.duplicate_of is None for job in different] == [True] * 5
    assert [job.duplicate_of is None for job in equal] == [False] * 2


def test_skipped_job_leaves_its_related_objects(session: Session) -> None:
    """The invoice does not list it; added again later, it still has its invoice."""
    invoice = Invoice()
    session.add(invoice)
    session.flush()
    first = Send(invoice=invoice)
    session.add(first)
    session.flush()
    double = Send(invoice=invoice, on_conflict="skip")
    session.add(double)
    session.flush()

    assert invoice.jobs == [first]
    assert double.invoice is invoice
    session.commit()
    double.unique_key = "another"
    session.add(double)
    session.commit()
    assert double.invoice_id == invoice.id


def test_foreign_key_that_is_not_known_is_refused(session: Session) -> None:
    """A new invoice has no key before the flush; the error says what to do."""
    session.add(Send(invoice=Invoice()))

    with pytest.raises(JobValueError, match=r"Send: .*'invoice'.*session.flush\(\)"):
        session.flush()


@pytest.mark.parametrize("name", ["note", "payload", "unique_key"])
def test_expression_in_a_key_is_refused(session: Session, name: str) -> None:
    """What only the database can compute is not known in time."""
    job = Index(document=1) if name == "payload" else Send()
    setattr(job, name, func.lower("A"))
    session.add(job)

    with pytest.raises(JobValueError, match="SQL expression"):
        session.flush()


def test_default_of_the_database_in_a_key_is_refused(session: Session) -> None:
    """A column that the server fills in must be given."""

    class Made(Job, unique=("made",)):
        made: Mapped[str | None] = mapped_column(
            server_default="x", use_existing_column=True
        )

    session.add(Made(made="y"))
    session.flush()
    session.add(Made())

    with pytest.raises(JobValueError, match="'made' has no value yet"):
        session.flush()


def test_computed_key_follows_the_arguments(session: Session) -> None:
    """A refused job, changed and added again, has another key."""
    committed(session, Index(document=1))
    job = Index(document=1)
    session.add(job)
    session.commit()
    job.document = 2
    session.add(job)
    session.flush()
    key = job.unique_key
    session.rollback()
    job.document = 3
    session.add(job)
    session.commit()

    assert job.unique_key != key
    assert job.duplicate_of is None
    assert states(session) == ["available", "available"]


def test_job_with_a_table_of_its_own_is_unique(session: Session) -> None:
    """The key may be made of its columns there."""
    first = committed(session, Report(title="a"))
    double = Report(title="a", on_conflict="skip")
    session.add(double)
    session.commit()

    assert double.duplicate_of == first


@pytest.mark.parametrize(
    ("unique", "message"),
    [
        (("documnt",), "did you mean 'document'"),
        (("bill",), "name a foreign key"),
        ((), "must name what makes"),
        ((7,), "must name what makes"),
    ],
    ids=str,
)
def test_unique_names_are_checked(unique: Any, message: str) -> None:
    """A name that is no argument or column is refused when the class is made."""

    class Local(DeclarativeBase):
        """A base of this test's own."""

    class Root(JobMixin, Local):
        __tablename__ = "roots"

    class Bill(Local):
        __tablename__ = "bills"
        id: Mapped[int] = mapped_column(primary_key=True)

    def body(namespace: dict[str, Any]) -> None:
        namespace["__annotations__"] = {"document": Arg[int]}
        namespace["bill"] = relationship(Bill, primaryjoin="true()", viewonly=True)

    with pytest.raises(JobDefinitionError, match=message):
        types.new_class("Named", (Root,), {"unique": unique}, body)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"on_conflict": "skip"}, "needs a unique_key"),
        ({"on_conflict": "ignore", "unique_key": "k"}, "must be one of 'raise'"),
        ({"unique_key": ""}, "must not be empty"),
        ({"unique_key": "k" * 201}, "201 bytes"),
        ({"unique_key": 7}, "must be a string"),
        ({"fingerprint": "a\0"}, "NUL"),
    ],
    ids=str,
)
def test_constructor_checks_the_key(values: dict[str, Any], message: str) -> None:
    """A policy without a key, and what is no key, are refused at once."""
    with pytest.raises(JobValueError, match=message):
        Ping(**values)


@pytest.mark.parametrize("name", ["unique_key", "fingerprint"])
def test_flush_checks_what_was_assigned(session: Session, name: str) -> None:
    """A key that is assigned later is checked at the flush."""
    job = Ping()
    setattr(job, name, "x" * 201)
    session.add(job)

    with pytest.raises(JobValueError, match="201 bytes"):
        session.flush()


def test_nothing_is_said_with_none(session: Session) -> None:
    """None stands for nothing, as for the other keywords."""
    session.add(Ping(unique_key=None, fingerprint=None, on_conflict=None))
    session.commit()

    assert states(session) == ["available"]


def test_savepoint_that_is_rolled_back_frees_the_key(session: Session) -> None:
    """Also for the next job in the same transaction."""
    with session.begin_nested() as savepoint:
        session.add(Ping(unique_key="k"))
        session.flush()
        savepoint.rollback()
    session.add(Ping(unique_key="k"))
    session.commit()

    assert states(session) == ["available"]


def test_job_that_a_later_listener_adds_has_its_key(session: Session) -> None:
    """It comes after the look, so there the index decides, and the error is SQL's."""
    committed(session, Index(document=1))

    def add_another(session: Session, *_: Any) -> None:
        session.add(Index(document=1))

    event.listen(session, "before_flush", add_another)
    session.add(Invoice())

    with pytest.raises(IntegrityError, match="unique_v1"):
        session.flush()


def test_repeatable_read_leaves_it_to_the_index(db: Engine) -> None:
    """Its snapshot is older than the other's commit, so the INSERT fails."""
    old = sessionmaker(db.execution_options(isolation_level="REPEATABLE READ"))
    with old() as session, Session(db) as other:
        assert states(session) == []
        committed(other, Ping(unique_key="k"))
        session.add(Ping(unique_key="k", on_conflict="skip"))

        with pytest.raises(IntegrityError, match="unique_v1"):
            session.flush()


def test_look_reads_the_index(db: Engine, session: Session) -> None:
    """Beside many jobs, the look for live ones reads the unique index only."""
    number = func.generate_series(1, 5_000).column_valued("n")
    table = job_tables(Job).table
    filled = select(func.concat("k", number), text("'ping'"))
    session.execute(insert(table).from_select(["unique_key", "kind"], filled))
    session.execute(text("ANALYZE"))
    seen: list[Any] = []

    def note(*args: Any) -> None:
        seen.append(args[2:4])

    for policy in ("skip", "replace"):
        event.listen(db, "before_cursor_execute", note)
        session.add(Ping(unique_key="k7", on_conflict=policy))
        session.flush()
        event.remove(db, "before_cursor_execute", note)
        statement, params = next(s for s in seen if "unique_key = any" in s[0])
        seen.clear()
        connection = session.connection()
        found = connection.exec_driver_sql(f"EXPLAIN {statement}", params)
        plan = "\n".join(found.scalars())
        assert "jobs_unique_v1_idx" in plan
        assert "Seq Scan" not in plan


def test_async_session(engine: Engine, schema: str) -> None:
    """A flush of an AsyncSession does the same."""

    async def main() -> tuple[int, int | None]:
        url = engine.url.set(drivername="postgresql+psycopg_async")
        own = in_schema(create_async_engine(url), schema)
        async with AsyncSession(own, expire_on_commit=False) as session:
            first = Ping(unique_key="k")
            session.add(first)
            await session.commit()
            double = Ping(unique_key="k", on_conflict="skip")
            session.add(double)
            await session.commit()
            await session.delete(first)
            await session.commit()
        await own.dispose()
        return first.id, double.duplicate_of

    first, other = asyncio.run(main())
    assert first == other


def test_delay_and_key_together(session: Session) -> None:
    """A delayed job holds its key like any other."""
    first = committed(session, Ping(unique_key="k", delay=timedelta(hours=1)))
    double = Ping(unique_key="k", on_conflict="skip")
    session.add(double)
    session.commit()

    assert double.duplicate_of == first
