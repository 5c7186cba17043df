"""`enqueue_select`: jobs from a query, in one statement."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    ARRAY,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    Text,
    case,
    cast,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqla_jobs import (
    Arg,
    JobMixin,
    JobValueError,
    MissingTables,
    PayloadError,
    arg,
    constant,
    enqueue_select,
)
from tests.conformance.enqueue_kit import Ear, executed, in_schema, schema_for

HOUR = timedelta(hours=1)
AT = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


class Color(enum.Enum):
    """An enum whose values are not its names."""

    RED = "r"
    BLUE = "b"


class Base(DeclarativeBase):
    """The application's."""


class Invoice(Base):
    """A domain class with columns of many types."""

    __tablename__ = "invoices"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    amount: Mapped[Decimal] = mapped_column(default=Decimal("10.50"))
    color: Mapped[Color] = mapped_column(default=Color.BLUE)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=AT)
    day: Mapped[date] = mapped_column(default=AT.date())
    took: Mapped[timedelta] = mapped_column(default=HOUR)
    token: Mapped[UUID] = mapped_column(default=UUID(int=7))
    paid: Mapped[bool] = mapped_column(default=True)
    words: Mapped[list[str]] = mapped_column(ARRAY(Text), default=["a", "b"])
    data: Mapped[Any] = mapped_column(JSONB, default={"k": [1]})


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "jobs"


class Send(Job, queue="mail", max_attempts=3, backoff=constant(HOUR)):
    """Has a required argument, one with a default, and a required column."""

    subject: Arg[str]
    copies: Arg[int] = arg(default=1)
    note: Arg[str | None] = arg(default=None)
    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoices.id"))
    invoice: Mapped[Invoice] = relationship()


class Typed(Job):
    """Has an argument of each type."""

    text: Arg[str]
    amount: Arg[Decimal]
    ratio: Arg[float]
    color: Arg[Color]
    at: Arg[datetime]
    day: Arg[date]
    took: Arg[timedelta]
    token: Arg[UUID]
    paid: Arg[bool]
    words: Arg[list[str]]
    data: Arg[dict[str, list[int]]]
    maybe: Arg[Decimal | None]


class Report(Job):
    """Has a table of its own."""

    __tablename__ = "reports"

    title: Mapped[str]


@pytest.fixture(scope="module")
def db(engine: Engine) -> Iterator[Engine]:
    """Yield an engine on this module's tables, with three invoices."""
    with schema_for(Base, engine) as name:
        own: Engine = in_schema(engine, name)
        with Session(own) as session:
            titles = ["one", "two\\ \"ü'", None]
            session.add_all([Invoice(id=i, title=t) for i, t in enumerate(titles, 1)])
            session.commit()
        yield own


@pytest.fixture
def session(db: Engine) -> Iterator[Session]:
    """Yield a session that is rolled back."""
    with Session(db) as session:
        yield session


TITLED = select(Invoice).where(Invoice.title.is_not(None))
MAPPING: dict[str, Any] = {"invoice_id": Invoice.id, "subject": Invoice.title}


def sent(session: Session) -> list[Send]:
    """Return the jobs by invoice."""
    return list(session.scalars(select(Send).order_by(Send.invoice_id)))


def test_a_job_for_each_row(session: Session) -> None:
    """Expressions fill arguments and columns; the class's defaults fill the rest."""
    assert enqueue_select(session, Send, TITLED, MAPPING | {"priority": 5}) == 2

    one, two = sent(session)
    assert (one.subject, two.subject) == ("one", "two\\ \"ü'")
    assert (one.invoice_id, two.invoice_id) == (1, 2)
    assert (one.copies, one.note, one.priority) == (1, None, 5)
    assert (one.queue, one.max_attempts, one.backoff) == ("mail", 3, "constant(3600)")
    assert (one.state, one.lane, one.kind) == ("available", 0, "send")


def test_rows_are_those_of_the_constructor(session: Session) -> None:
    """The same values given to the constructor make the same payload."""
    enqueue_select(session, Send, TITLED.where(Invoice.id == 1), MAPPING)
    session.add(Send(subject="one", invoice_id=1))
    session.flush()

    one, two = sent(session)
    hidden = {"id", "created_at", "run_at"}
    columns = [c.key for c in Send.__mapper__.columns if c.key not in hidden]
    assert [getattr(one, key) for key in columns] == [
        getattr(two, key) for key in columns
    ]


def test_it_is_one_statement(session: Session, db: Engine) -> None:
    """The rows never come to Python."""
    with executed(db) as seen:
        enqueue_select(session, Send, TITLED, MAPPING)

    assert seen == ["WITH"]


def test_values_of_each_type_decode(session: Session) -> None:
    """What SQL writes into the payload, an Arg of that type reads."""
    names = ("amount", "color", "at", "day", "took", "token", "paid", "words", "data")
    mapping = {name: getattr(Invoice, name) for name in names}
    mapping |= {"text": Invoice.title, "ratio": Invoice.id * 1.5, "maybe": null()}

    assert enqueue_select(session, Typed, TITLED.where(Invoice.id == 1), mapping) == 1

    job = session.scalars(select(Typed)).one()
    invoice = session.get_one(Invoice, 1)
    assert {name: getattr(job, name) for name in names} == {
        name: getattr(invoice, name) for name in names
    }
    assert (job.text, job.ratio, job.maybe) == ("one", 1.5, None)


def test_the_query_keeps_its_clauses(session: Session) -> None:
    """WHERE, joins, ORDER BY and LIMIT count; what it selects does not matter."""
    query = (
        select(func.count(Invoice.id))
        .select_from(Invoice)
        .where(Invoice.id < 3)
        .order_by(Invoice.id.desc())
        .limit(1)
    )

    assert enqueue_select(session, Send, query, MAPPING) == 1
    assert sent(session)[0].invoice_id == 2


def test_constants_alone(session: Session) -> None:
    """A mapping without expressions makes the same job for each row."""
    mapping = {"subject": "all", "invoice_id": 3}

    assert enqueue_select(session, Send, select(Invoice), mapping) == 3
    assert [job.subject for job in sent(session)] == ["all"] * 3


def test_more_arguments_than_a_function_takes(session: Session) -> None:
    """PostgreSQL's functions take at most 100 arguments, job classes any number."""

    class Broad(DeclarativeBase):
        """Another application."""

    class BroadJob(JobMixin, Broad):
        """Its root."""

        __tablename__ = "jobs"

    names = [f"arg_{i}" for i in range(120)]
    body = {"__annotations__": dict.fromkeys(names, Arg[int]), "__module__": __name__}
    many: Any = type("Many", (BroadJob,), body | {name: arg() for name in names})

    enqueue_select(session, many, TITLED, dict.fromkeys(names, Invoice.id))

    payloads = session.connection().execute(select(Job.payload).order_by(Job.id))
    assert payloads.scalars().first() == dict.fromkeys(names, 1)


def test_run_at_decides_the_state(session: Session) -> None:
    """Rows that are due are available, later ones scheduled; NULL is now."""
    run_at = case(
        (Invoice.id == 1, func.now() - HOUR), (Invoice.id == 2, func.now() + HOUR)
    )
    subject = func.coalesce(Invoice.title, "")
    mapping = MAPPING | {"subject": subject, "run_at": run_at}

    enqueue_select(session, Send, select(Invoice), mapping)

    now = session.scalar(select(func.now()))
    assert now is not None
    past, later, none = sent(session)
    assert [j.state for j in (past, later, none)] == [
        "available",
        "scheduled",
        "available",
    ]
    assert (past.run_at, later.run_at) == (now - HOUR, now + HOUR)
    assert timedelta(0) <= none.run_at - now < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("delay", "states"),
    [
        (HOUR, ["scheduled", "scheduled"]),
        (timedelta(0), ["available", "available"]),
        (case((Invoice.id == 2, HOUR)), ["available", "scheduled"]),
    ],
    ids=["constant", "zero", "expression"],
)
def test_delay_counts_from_the_databases_clock(
    session: Session, delay: Any, states: list[str]
) -> None:
    """A constant or an interval of the query puts the job off."""
    enqueue_select(session, Send, TITLED, MAPPING | {"delay": delay})

    now = session.scalar(select(func.now()))
    assert now is not None
    jobs = sent(session)
    assert [job.state for job in jobs] == states
    for job in jobs:
        late = HOUR if job.state == "scheduled" else timedelta(0)
        assert late <= job.run_at - now < late + timedelta(minutes=1)


def test_runners_are_woken_once_at_the_commit(db: Engine, session: Session) -> None:
    """Available jobs wake; scheduled ones, none at all, and a rollback do not."""
    ear = Ear(db, Job)
    enqueue_select(session, Send, TITLED, MAPPING)
    session.rollback()
    enqueue_select(session, Send, TITLED, MAPPING | {"delay": HOUR})
    enqueue_select(session, Send, TITLED.where(Invoice.id > 9), MAPPING)
    session.commit()
    assert ear.heard() == 0

    enqueue_select(session, Send, TITLED, MAPPING)
    enqueue_select(session, Send, TITLED, MAPPING)
    session.commit()
    assert ear.heard() == 1
    ear.close()
    session.query(Job).delete()
    session.commit()


def test_pending_objects_are_flushed_first(session: Session) -> None:
    """The query sees what the session holds, as any query does."""
    session.add(Invoice(id=9, title="new"))

    enqueue_select(session, Send, TITLED.where(Invoice.id == 9), MAPPING)

    assert sent(session)[0].subject == "new"


ERRORS = {
    "missing": ({"subject": None}, TypeError, r"Send\(\) missing 1 .*'subject'"),
    "unknown": (
        {"subjekt": Invoice.id},
        TypeError,
        r"Send\(\): unknown .*'subjekt'; did you mean 'subject'",
    ),
    "unknown constant": ({"subjekt": 1}, TypeError, r"did you mean 'subject'"),
    "library's": (
        {"attempt": Invoice.id},
        TypeError,
        r"takes no 'attempt': the library writes it",
    ),
    "type": (
        {"subject": Invoice.id},
        PayloadError,
        r"Send\.subject: expected str, got an expression of type Integer\(\); convert",
    ),
    "constant's type": ({"subject": 3}, PayloadError, "expected str, got 3"),
    "option": ({"priority": 40_000}, JobValueError, "must be an integer from -32768"),
    "backoff": (
        {"backoff": Invoice.title},
        JobValueError,
        r"Send\.backoff takes no SQL expression",
    ),
    "payload": (
        {"payload": Invoice.data},
        JobValueError,
        r"Send\.payload takes no SQL expression",
    ),
    "relationship": (
        {"invoice": cast(null(), Integer)},
        JobValueError,
        r"Send\.invoice takes no SQL expression .*foreign key",
    ),
    "both": (
        {"run_at": func.now(), "delay": HOUR},
        JobValueError,
        "takes run_at= or delay=, not both",
    ),
    "column": ({"invoice_id": None}, JobValueError, r"Send\.invoice_id is None, but"),
    "NULL in an Arg": (
        {"subject": cast(null(), Text)},
        PayloadError,
        r"Send\.subject: NULL in a row",
    ),
    "NULL in a column": (
        {"invoice_id": cast(null(), Integer)},
        JobValueError,
        r"Send\.invoice_id is None, but Send requires it",
    ),
    "size": (
        {"subject": func.repeat("x", 1_000_000)},
        PayloadError,
        r"Send\.payload: a row's 1,000,\d+ bytes .* limit of 1,000,000",
    ),
}


@pytest.mark.parametrize(("change", "error", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_leave_nothing(
    session: Session, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    """What is wrong is said as by the constructor, and the transaction goes on."""
    mapping = {k: v for k, v in (MAPPING | change).items() if v is not None}

    with pytest.raises(error, match=text):
        enqueue_select(session, Send, TITLED, mapping)

    assert sent(session) == []


def test_a_naive_time_is_refused(session: Session) -> None:
    """The constructor refuses it too; the error says how to convert."""
    names = ("amount", "color", "day", "took", "token", "paid", "words", "data")
    mapping = {name: getattr(Invoice, name) for name in names}
    mapping |= {"text": Invoice.title, "ratio": 1.5, "maybe": None}
    mapping["at"] = cast(Invoice.at, DateTime)
    with pytest.raises(PayloadError, match=r"Typed\.at: .*DateTime\(timezone=True\)"):
        enqueue_select(session, Typed, TITLED, mapping)


def test_other_queries_are_refused(session: Session) -> None:
    """A union has no columns to replace; the error says what to do."""
    query: Any = union_all(TITLED, TITLED)
    with pytest.raises(JobValueError, match="got CompoundSelect; wrap another query"):
        enqueue_select(session, Send, query, MAPPING)

    rows = query.subquery()
    mapping = {"invoice_id": rows.c.id, "subject": rows.c.title}
    assert enqueue_select(session, Send, select(rows), mapping) == 4


def test_a_class_with_its_own_table_is_refused(session: Session) -> None:
    """One INSERT cannot fill two tables."""
    with pytest.raises(JobValueError, match="Report has a table of its own"):
        enqueue_select(session, Report, TITLED, {"title": Invoice.title})


def test_missing_tables_are_named(engine: Engine) -> None:
    """The error says which table and how to make it."""
    mapping = {"subject": "a", "invoice_id": 1}
    with (
        Session(in_schema(engine, "information_schema")) as session,
        pytest.raises(MissingTables, match=r"no table .*jobs; create it with"),
    ):
        enqueue_select(session, Send, select(literal(1)), mapping)


def test_async_sessions(db: Engine, dsn: str) -> None:
    """Under run_sync it is the same; without, the error says so."""
    schema = db.get_execution_options()["schema_translate_map"][None]

    async def main() -> int:
        engine = in_schema(create_async_engine(dsn), schema)
        async with AsyncSession(engine) as session:
            wrong: Any = session
            with pytest.raises(JobValueError, match="run_sync"):
                enqueue_select(wrong, Send, TITLED, MAPPING)
            made = await session.run_sync(enqueue_select, Send, TITLED, MAPPING)
        await engine.dispose()
        return made

    assert asyncio.run(main()) == 2
