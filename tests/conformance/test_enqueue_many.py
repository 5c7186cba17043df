"""`enqueue_many`: rows as the constructor would make them, by INSERT or by COPY."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    Column,
    Engine,
    Enum,
    LargeBinary,
    Numeric,
    String,
    Table,
    TypeDecorator,
    create_engine,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
)

from sqla_jobs import (
    Arg,
    JobMixin,
    JobValueError,
    MissingTables,
    PayloadError,
    arg,
    enqueue_many,
)
from sqla_jobs._dialects import pg_copy
from sqla_jobs._store import wake
from tests.conformance.enqueue_kit import (
    Base,
    Bill,
    Ear,
    Invoice,
    Job,
    Ping,
    Report,
    Send,
    executed,
    in_schema,
    rows_of,
    schema_for,
)

HOUR = timedelta(hours=1)
BOTH = pytest.mark.parametrize("threshold", [None, 1], ids=["insert", "copy"])


class Color(enum.Enum):
    """A column's values."""

    RED = "r"
    BLUE = "b"


class Shouted(TypeDecorator[str]):
    """A type of the application: stores upper case."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Return what is stored."""
        return None if value is None else value.upper()


class Reversed(TypeDecorator[str]):
    """A type of the application that stores through SQL."""

    impl = String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        """Return the SQL."""
        return func.reverse(bindparam, type_=String())


class Wide(DeclarativeBase):
    """A second application, with many types."""


class WideJob(JobMixin, Wide):
    """Its root."""

    __tablename__ = "wide jobs"


class Stuff(WideJob):
    """Has a column of each type."""

    text: Arg[str] = arg(default="")
    some: Arg[list[dict[str, int | str | None]]] = arg(default_factory=list)
    note: Mapped[str | None] = mapped_column("a note")
    blob: Mapped[bytes | None] = mapped_column(LargeBinary)
    words: Mapped[list[str] | None] = mapped_column(ARRAY(String))
    price: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))
    color: Mapped[Color | None] = mapped_column(Enum(Color, native_enum=False))
    data: Mapped[Any] = mapped_column(JSONB, nullable=True)
    loud: Mapped[str | None] = mapped_column(Shouted)
    token: Mapped[UUID | None]
    plain: Mapped[int] = mapped_column(default=7)
    payload_text: Mapped[str | None] = mapped_column()


class Backwards(WideJob):
    """Has a type that COPY cannot store."""

    word: Mapped[str | None] = mapped_column(Reversed)


class Stamped(WideJob):
    """Has a default that only Python knows."""

    stamp: Mapped[UUID] = mapped_column(default=uuid4)


class DataBase(MappedAsDataclass, DeclarativeBase):
    """An application with dataclasses."""


class DataJob(JobMixin, DataBase):
    """Its root."""

    __tablename__ = "data_jobs"


class DataPing(DataJob):
    """Has a default of dataclasses."""

    size: Mapped[int] = mapped_column(default=4)
    label: Mapped[str] = mapped_column(default_factory=lambda: "made")


@pytest.fixture(scope="module")
def db(engine: Engine) -> Iterator[Engine]:
    """Yield an engine on this module's tables."""
    with schema_for(Base, engine) as name:
        own = in_schema(engine, name)
        Wide.metadata.create_all(own)
        DataBase.metadata.create_all(own)
        yield own


@pytest.fixture
def session(db: Engine) -> Iterator[Session]:
    """Yield a session that is rolled back."""
    wake.forget_recent()
    with Session(db) as session:
        yield session


@BOTH
def test_rows_have_the_classes_defaults(
    session: Session, threshold: int | None
) -> None:
    """A row is what the constructor makes of the same keywords."""
    session.add(Send(subject="a"))
    session.flush()
    many = enqueue_many(session, Send, [{"subject": "a"}], copy_threshold=threshold)

    added, copied = rows_of(session)
    assert many == 1
    assert copied == added
    assert (copied["queue"], copied["max_attempts"]) == ("mail", 3)


@BOTH
def test_keywords_are_those_of_the_constructor(
    session: Session, threshold: int | None
) -> None:
    """Args, columns and options of each job are kept."""
    invoice = Invoice(title="x")
    session.add(invoice)
    session.flush()
    row = {"invoice_id": invoice.id, "priority": 5, "tags": ["a", 'b"\\'], "queue": "q"}

    enqueue_many(session, Bill, [row | {"timeout": HOUR}], copy_threshold=threshold)

    bill = session.scalars(select(Bill)).one()
    assert (bill.invoice_id, bill.priority, bill.tags) == (invoice.id, 5, ["a", 'b"\\'])
    assert (bill.queue, bill.timeout) == ("q", HOUR)


def own_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return *rows* of `Stuff` without the columns of its siblings."""
    # An INSERT fills these with their defaults too, since they share the table.
    siblings = ("stamp", "word")
    return [{k: v for k, v in row.items() if k not in siblings} for row in rows]


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
    ),
    max_leaves=8,
)
optional = {
    "text": text | st.sampled_from(["\\N", "\\.", "a\tb\nc\rd", '"', "'", "\\x41"]),
    "some": st.lists(st.dictionaries(text, st.none() | st.integers() | text)),
    "note": st.none() | text,
    "blob": st.none() | st.binary(),
    "words": st.none() | st.lists(text | st.sampled_from(["NULL", "{}", '","'])),
    "price": st.none() | st.decimals(-(10**9), 10**9, places=6),
    "color": st.none() | st.sampled_from(Color),
    "data": json,
    "loud": st.none() | text,
    "token": st.none() | st.uuids(),
    "payload_text": text,
    "plain": st.integers(-(2**31), 2**31 - 1),
    "queue": st.sampled_from(["a", "ü\\t", "q'\""]),
    "priority": st.integers(-(2**15), 2**15 - 1),
    "timeout": st.none()
    | st.timedeltas(timedelta(microseconds=1), timedelta(days=999)),
    "payload_bytes": st.none() | st.binary(),
    "tags": st.none() | st.lists(text),
    "meta": st.none() | st.dictionaries(text, json, max_size=3),
}
rows = st.lists(st.fixed_dictionaries({}, optional=optional), max_size=8)


@pytest.mark.slow
@given(rows=rows)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_copy_and_insert_store_the_same(db: Engine, rows: list[dict[str, Any]]) -> None:
    """Whatever the values hold, both ways and the ORM make the same rows."""
    found = []
    for way in ("insert", "copy", "add"):
        with Session(db) as session:
            if way == "add":
                session.add_all([Stuff(**row) for row in rows])
                session.flush()
            else:
                threshold = 1 if way == "copy" else None
                made = enqueue_many(session, Stuff, rows, copy_threshold=threshold)
                assert made == len(rows)
            # Rows of other columns may be stored in another order.
            found.append(sorted(map(repr, own_columns(rows_of(session, WideJob)))))

    assert found[0] == found[1] == found[2]


def test_copy_is_used_from_the_threshold_on(session: Session, db: Engine) -> None:
    """Below it rows are an ordinary statement; at it they are not."""
    with executed(db) as seen:
        enqueue_many(session, Ping, [{}] * 4, copy_threshold=5)
        assert seen == ["INSERT"]
        enqueue_many(session, Ping, [{}] * 5, copy_threshold=5)

    assert seen == ["INSERT"]
    assert len(rows_of(session)) == 9


def test_inserts_are_one_statement_per_chunk(session: Session, db: Engine) -> None:
    """2,500 rows are three statements."""
    with executed(db) as seen:
        enqueue_many(session, Ping, [{}] * 2500, copy_threshold=None)

    assert seen == ["INSERT"] * 3


def test_rows_with_other_keys_are_statements_of_their_own(
    session: Session, db: Engine
) -> None:
    """A chunk of two sets of columns is two statements, however they are mixed."""
    mixed: list[dict[str, Any]] = [{} if i % 2 else {"tags": ["a"]} for i in range(100)]
    with executed(db) as seen:
        enqueue_many(session, Ping, mixed, copy_threshold=None)

    assert seen == ["INSERT"] * 2


@BOTH
def test_a_generator_is_read_a_chunk_at_a_time(
    session: Session, threshold: int | None
) -> None:
    """Earlier chunks are stored before later rows are made, even by this session."""
    before: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(30):
            if i == 25:
                stored = session.scalar(select(func.count()).select_from(Job))
                before.append(stored or 0)
            yield {"subject": str(i)}

    enqueue_many(session, Send, rows(), chunk=10, copy_threshold=threshold)

    assert before == [20]
    assert [row["payload"]["subject"] for row in rows_of(session)] == [
        str(i) for i in range(30)
    ]


@BOTH
def test_rollback_leaves_nothing(
    session: Session, db: Engine, threshold: int | None
) -> None:
    """COPY belongs to the caller's transaction, and to its savepoint."""
    ear = Ear(db)
    with session.begin_nested() as savepoint:
        enqueue_many(session, Ping, [{}] * 3, copy_threshold=threshold)
        savepoint.rollback()
    assert rows_of(session) == []
    enqueue_many(session, Ping, [{}] * 3, copy_threshold=threshold)
    assert len(rows_of(session)) == 3
    session.rollback()

    with Session(db) as other:
        assert rows_of(other) == []
        other.commit()
    assert ear.heard() == 0
    ear.close()


@BOTH
def test_a_transaction_notifies_once(
    session: Session, db: Engine, threshold: int | None
) -> None:
    """However many chunks and calls: one wake-up, at the commit."""
    ear = Ear(db)
    with executed(db) as seen:
        for _ in range(2):
            enqueue_many(session, Ping, [{}] * 25, chunk=10, copy_threshold=threshold)
        assert "NOTIFY" not in seen
        session.commit()

    assert seen[-1] == "NOTIFY"
    assert seen.count("NOTIFY") == 1
    assert ear.heard() == 1
    ear.close()
    session.query(Job).delete()
    session.commit()


@BOTH
def test_scheduled_rows(session: Session, db: Engine, threshold: int | None) -> None:
    """run_at and delay schedule; the clock is read once a chunk; nobody is woken."""
    at = datetime(2050, 1, 1, tzinfo=UTC)
    with executed(db) as seen:
        rows: list[dict[str, Any]] = [
            {"delay": HOUR},
            {"run_at": at},
            {"delay": 2 * HOUR},
        ]
        enqueue_many(session, Ping, rows, copy_threshold=threshold)
        assert seen.count("SELECT") == 1
    now = session.scalar(select(func.now()))
    assert now is not None
    times = session.scalars(select(Job.run_at).order_by(Job.run_at)).all()
    states = set(session.scalars(select(Job.state)))
    assert not session.info

    assert states == {"scheduled"}
    assert times[2] == at
    assert times[1] - times[0] == HOUR
    assert HOUR <= times[0] - now < HOUR + timedelta(minutes=2)


@BOTH
def test_pending_objects_are_flushed_first(
    session: Session, threshold: int | None
) -> None:
    """Rows may refer to what the session holds, as in any query."""
    session.add(Invoice(id=77, title="new"))

    enqueue_many(session, Bill, [{"invoice_id": 77}], copy_threshold=threshold)

    assert rows_of(session)[0]["invoice_id"] == 77


def test_a_class_with_its_own_table_is_inserted(session: Session, db: Engine) -> None:
    """COPY cannot bring the new keys into a second table, so it is not used."""
    with executed(db) as seen:
        enqueue_many(
            session, Report, [{"title": str(i)} for i in range(20)], copy_threshold=1
        )

    assert seen == ["INSERT", "INSERT"]
    reports = session.scalars(select(Report).order_by(Report.id)).all()
    assert [report.title for report in reports] == [str(i) for i in range(20)]
    assert {report.kind for report in reports} == {"report"}


def test_types_that_need_sql_are_inserted(session: Session, db: Engine) -> None:
    """A type's bind_expression is honoured."""
    with executed(db) as seen:
        enqueue_many(session, Backwards, [{"word": "abc"}], copy_threshold=1)

    assert seen == ["INSERT"]
    assert rows_of(session, WideJob)[0]["word"] == "cba"


def test_defaults_of_python_are_inserted(session: Session, db: Engine) -> None:
    """A column default that is a function is called for each row."""
    with executed(db) as seen:
        enqueue_many(session, Stamped, [{}, {}], copy_threshold=1)

    assert seen == ["INSERT"]
    one, two = rows_of(session, WideJob)
    assert one["stamp"] != two["stamp"]


@BOTH
def test_defaults_of_dataclasses(session: Session, threshold: int | None) -> None:
    """A dataclass's defaults hold for rows as they do for objects."""
    session.add(DataPing())
    session.flush()
    enqueue_many(session, DataPing, [{}], copy_threshold=threshold)

    added, copied = rows_of(session, DataJob)
    assert copied == added
    assert (copied["size"], copied["label"]) == (4, "made")


ERRORS = {
    "missing": ({}, TypeError, r"row 2: Send\(\) missing 1 .*'subject'"),
    "unknown": (
        {"subjekt": "x"},
        TypeError,
        r"row 2: Send\(\): unknown .*did you mean 'subject'",
    ),
    "type": (
        {"subject": 3},
        PayloadError,
        r"row 2: Send\.subject: expected str, got 3",
    ),
    "nan": (
        {"subject": "", "payload": {"x": float("nan")}},
        PayloadError,
        r"row 2: Send\.payload\.x: nan is not finite",
    ),
    "size": (
        {"subject": "x" * 1_000_001},
        PayloadError,
        r"row 2: Send\.payload: 1,000,\d+ bytes .* above the limit of 1,000,000",
    ),
    "naive": (
        {"subject": "", "run_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        JobValueError,
        r"row 2: Send\(run_at=.*is naive",
    ),
    "priority": (
        {"subject": "", "priority": 40_000},
        JobValueError,
        r"row 2: Send\(priority=40000\) must be an integer from",
    ),
    "lease": (
        {"subject": "", "lease": timedelta(seconds=2)},
        JobValueError,
        r"row 2: Send\(lease=.*3 s or more",
    ),
    "library's": (
        {"subject": "", "attempt": 3},
        TypeError,
        r"row 2: Send\(\) takes no 'attempt'",
    ),
    "no mapping": (
        Send(subject="x"),
        TypeError,
        r"row 2: expected a mapping .*session\.add_all",
    ),
}


@pytest.mark.parametrize(("row", "error", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_are_the_constructors_with_the_row(
    session: Session, row: Any, error: type[Exception], text: str
) -> None:
    """What is wrong with a row is said as for an object, with its index."""
    good = {"subject": "good"}

    with pytest.raises(error, match=text):
        enqueue_many(session, Send, [good, good, row])


def test_a_required_column_is_named(session: Session) -> None:
    """The check of the flush holds for rows."""
    with pytest.raises(
        JobValueError, match=r"row 0: Bill\.invoice_id is None, but Bill"
    ):
        enqueue_many(session, Bill, [{"note": "x"}])


def test_a_relationship_is_refused(session: Session) -> None:
    """There are no objects; the foreign key is asked for."""
    with pytest.raises(JobValueError, match=r"row 0: Bill\.invoice is no column.*key"):
        enqueue_many(session, Bill, [{"invoice": Invoice()}])


def test_the_root_is_refused(session: Session) -> None:
    """The root is no kind of job."""
    with pytest.raises(TypeError, match="is no kind of job"):
        enqueue_many(session, Job, [{}])


def test_an_async_session_is_refused_with_the_way_out() -> None:
    """The error says what to write instead."""
    session: Any = AsyncSession()
    with pytest.raises(JobValueError, match=r"await session\.run_sync\(enqueue_many"):
        enqueue_many(session, Ping, [{}])


def test_a_chunk_below_one_is_refused(session: Session) -> None:
    """A chunk needs a row."""
    with pytest.raises(JobValueError, match="chunk must be 1 or more, got 0"):
        enqueue_many(session, Ping, [{}], chunk=0)


@BOTH
def test_errors_of_the_database_are_sqlalchemys(
    session: Session, threshold: int | None
) -> None:
    """A broken foreign key is an IntegrityError, by COPY too."""
    with pytest.raises(IntegrityError, match="foreign key"):
        enqueue_many(session, Bill, [{"invoice_id": -1}], copy_threshold=threshold)
    session.rollback()
    assert rows_of(session) == []


@BOTH
def test_missing_tables_are_named(engine: Engine, threshold: int | None) -> None:
    """The error says which table and how to make it."""
    with (
        Session(in_schema(engine, "information_schema")) as session,
        pytest.raises(MissingTables, match=r"no table .*jobs; create it with"),
    ):
        enqueue_many(session, Ping, [{}], copy_threshold=threshold)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_sessions_copy_too(db: Engine, dsn: str, driver: str) -> None:
    """Under run_sync: psycopg copies, asyncpg inserts, the rows are the same."""
    rows = [{"text": "\\N\tü", "blob": b"\0", "words": ["a", "NULL"]}] * 25
    with Session(db) as session:
        enqueue_many(session, Stuff, rows, copy_threshold=None)
        expected = own_columns(rows_of(session, WideJob))

    async def main() -> list[dict[str, Any]]:
        name = db.get_execution_options()["schema_translate_map"][None]
        url = dsn.replace("psycopg", driver)
        engine = in_schema(create_async_engine(url), name)
        async with AsyncSession(engine) as session:
            with executed(engine.sync_engine) as seen:
                await session.run_sync(
                    enqueue_many, Stuff, iter(rows), chunk=10, copy_threshold=1
                )
            assert seen.count("INSERT") == (0 if driver == "psycopg" else 3)
            found = await session.run_sync(rows_of, WideJob)
            await session.rollback()
            assert await session.run_sync(rows_of, WideJob) == []
        await engine.dispose()
        return found

    assert own_columns(asyncio.run(main())) == expected


def test_a_lost_connection_is_a_disconnect(db: Engine, engine: Engine) -> None:
    """SQLAlchemy learns of it, so that the pool does not hand it out again."""
    with Session(db) as session:
        pid = session.scalar(select(func.pg_backend_pid()))
        with engine.connect() as other:
            other.execute(select(func.pg_terminate_backend(pid, 9000)))
        with pytest.raises(DBAPIError) as caught:
            enqueue_many(session, Ping, [{}], copy_threshold=1)

    assert caught.value.connection_invalidated


def test_names_are_quoted() -> None:
    """Tables and columns of any name can be copied into."""
    table = Table("my jobs", Wide.metadata, Column("a b", String), extend_existing=True)
    Wide.metadata.remove(table)

    class Connected:
        dialect = create_engine("postgresql+psycopg://").dialect

        def schema_for_object(self, obj: Any) -> str:
            return 'we"ird'

    connection: Any = Connected()
    statement = pg_copy._statement(connection, [table.c["a b"]])
    assert statement == 'COPY "we""ird"."my jobs" ("a b") FROM STDIN'
