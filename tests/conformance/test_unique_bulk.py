"""Unique keys in bulk: from rows by INSERT or COPY, and from a query."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import (
    Arg,
    DuplicateJob,
    JobMixin,
    JobValueError,
    PayloadError,
    enqueue_many,
    enqueue_select,
)
from sqla_jobs._store.wake import forget_recent
from tests.conformance.enqueue_kit import executed, in_schema, schema_for

BOTH = pytest.mark.parametrize("threshold", [None, 1], ids=["insert", "copy"])


class Base(DeclarativeBase):
    """The application's."""


class Document(Base):
    """A domain class."""

    __tablename__ = "documents"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str | None]


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "jobs"


class Ping(Job):
    """Has no key of its own."""


class Index(Job, unique=("args", "color"), on_conflict="skip"):
    """One per document and color."""

    document: Arg[int]
    color: Mapped[str | None] = mapped_column(default="red")


class Report(Job):
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


def rows(*keys: str | None, **values: Any) -> list[dict[str, Any]]:
    """Return rows with these keys."""
    return [{"unique_key": key, **values} for key in keys]


def keys(session: Session, state: str = "available") -> list[str | None]:
    """Return the keys of the jobs in a state, by id."""
    job = Job.__table__.c
    return list(
        session.scalars(
            select(job.unique_key).where(job.state == state).order_by(job.id)
        )
    )


@BOTH
def test_skipped_rows_are_not_counted(session: Session, threshold: int | None) -> None:
    """Neither those of live jobs nor those of earlier rows; the others are there."""
    enqueue_many(session, Ping, rows("a"))
    given = rows("a", "b", "b", None, None, "c", on_conflict=None)
    for row in given:
        row["on_conflict"] = "skip" if row["unique_key"] else None
    count = enqueue_many(session, Ping, given, copy_threshold=threshold)
    session.commit()

    assert count == 4
    assert sorted(map(str, keys(session))) == ["None", "None", "a", "b", "c"]


@BOTH
@pytest.mark.parametrize("double", ["a", "c"], ids=["live", "same rows"])
def test_raising_row_is_named(
    session: Session, threshold: int | None, double: str
) -> None:
    """Nothing of its chunk stays, earlier chunks do, and the transaction goes on."""
    enqueue_many(session, Ping, rows("a"))
    given = rows("b", None, "c", double, "d")

    with pytest.raises(DuplicateJob, match=f"^row 3: .*{double!r}") as caught:
        enqueue_many(session, Ping, given, chunk=2, copy_threshold=threshold)

    assert caught.value.unique_key == double
    session.add(Ping())
    session.commit()
    assert sorted(map(str, keys(session))) == ["None", "None", "a", "b"]


@BOTH
def test_replacing_rows(session: Session, threshold: int | None) -> None:
    """The old jobs are cancelled; of several rows the last is there."""
    enqueue_many(session, Ping, rows("a", "b"))
    given = rows("a", "a", "c", on_conflict="replace")
    given[1]["priority"] = 5
    count = enqueue_many(session, Ping, given, copy_threshold=threshold)
    session.commit()

    assert count == 2
    assert (keys(session), keys(session, "cancelled")) == (["b", "a", "c"], ["a"])
    query = select(Job.priority).where(Job.unique_key == "a")
    assert session.scalar(query.where(Job.state == "available")) == 5


def test_refused_chunk_replaces_nothing(session: Session) -> None:
    """A row that raises leaves the jobs alone that others would replace."""
    enqueue_many(session, Ping, rows("a", "b"))

    with pytest.raises(DuplicateJob, match="row 1"):
        enqueue_many(session, Ping, rows("a", on_conflict="replace") + rows("b"))

    assert keys(session) == ["a", "b"]


def test_rows_without_keys_cost_no_statement(db: Engine, session: Session) -> None:
    """With keys there are two more, without there is the INSERT alone."""
    with executed(db) as seen:
        enqueue_many(session, Ping, rows(None, None))
        plain = [*seen]
        enqueue_many(session, Ping, rows("a", "b"))

    assert plain == ["INSERT"]
    assert seen[1:] == ["SELECT", "SELECT", "INSERT"]


def test_rows_have_the_key_that_objects_have(session: Session) -> None:
    """A class computes the same key for both, with its columns' defaults."""
    session.add(Index(document=1))
    session.commit()
    given: list[dict[str, Any]]
    given = [{"document": 1}, {"document": 1, "color": "blue"}, {"document": 2}]
    count = enqueue_many(session, Index, given)
    double = Index(document=2, color="red")
    session.add(double)
    session.commit()

    assert count == 2
    assert double.duplicate_of is not None


def test_rows_of_a_class_with_a_table_of_its_own(session: Session) -> None:
    """They are left out in both of its tables."""
    given = rows("a", "a", on_conflict="skip", title="x")

    assert enqueue_many(session, Report, given) == 1
    assert session.scalar(select(func.count()).select_from(Report)) == 1


def test_many_rows_take_one_lock(session: Session) -> None:
    """Chunk after chunk, the server's lock table would fill up."""
    given = ({"unique_key": f"{number}"} for number in range(2_500))
    assert enqueue_many(session, Ping, given) == 2_500

    counting = text(
        "SELECT count(*) FROM pg_locks"
        " WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    )
    assert session.scalar(counting) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"on_conflict": "skip"}, "row 1: .*needs a unique_key"),
        ({"unique_key": "k" * 201}, "row 1: .*201 bytes"),
        ({"unique_key": "k", "on_conflict": "never"}, "row 1: .*must be one of"),
    ],
    ids=str,
)
def test_rows_are_checked(
    session: Session, values: dict[str, Any], message: str
) -> None:
    """As the constructor does, with the number of the row."""
    with pytest.raises(JobValueError, match=message):
        enqueue_many(session, Ping, [{}, values])


@pytest.fixture
def documents(session: Session) -> Session:
    """Return the session, with a document for each of a, b, b, and one without."""
    session.add_all(Document(key=key) for key in ("a", "b", "b", None, None))
    session.flush()
    return session


def test_select_skips(documents: Session) -> None:
    """Rows with a taken key are left out, those without a key are not unique."""
    enqueue_many(documents, Ping, rows("a"))
    values = {"unique_key": Document.key, "on_conflict": "skip"}
    count = enqueue_select(documents, Ping, select(Document), values)
    documents.commit()

    assert count == 3
    assert sorted(map(str, keys(documents))) == ["None", "None", "a", "b"]


def test_select_raises(documents: Session) -> None:
    """Nothing is enqueued then, and the transaction goes on."""
    values = {"unique_key": Document.key}

    with pytest.raises(DuplicateJob, match="1 of 5 rows"):
        enqueue_select(documents, Ping, select(Document), values)

    query = select(Document).where(Document.id.in_(select(func.min(Document.id))))
    enqueue_select(documents, Ping, query, values)
    documents.commit()
    assert keys(documents) == ["a"]


def test_select_of_a_computed_key(documents: Session) -> None:
    """The database cannot compute it; a key of the query's does."""
    values: dict[str, Any] = {"document": Document.id}

    with pytest.raises(JobValueError, match="needs an expression for unique_key"):
        enqueue_select(documents, Index, select(Document), values)

    values["unique_key"] = func.concat("doc", Document.id)
    assert enqueue_select(documents, Index, select(Document), values) == 5
    assert enqueue_select(documents, Index, select(Document), values) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"on_conflict": "skip"}, "on_conflict has no meaning"),
        ({"on_conflict": "replace", "unique_key": Document.key}, "cannot 'replace'"),
        ({"on_conflict": "return", "unique_key": "k"}, "cannot 'return'"),
        ({"on_conflict": 7, "unique_key": "k"}, "must be one of"),
        ({"unique_key": "k" * 201}, "201 bytes"),
    ],
    ids=["no key", "replace", "return", "policy", "key"],
)
def test_select_checks(session: Session, values: dict[str, Any], message: str) -> None:
    """What it cannot do is refused before it is tried."""
    with pytest.raises(JobValueError, match=message):
        enqueue_select(session, Ping, select(Document), values)


def test_select_that_refuses_a_row_is_usable(documents: Session) -> None:
    """An Arg that is NULL refuses all rows, with a key too."""
    values = {"document": func.nullif(Document.id, Document.id)}

    with pytest.raises(PayloadError):
        enqueue_select(
            documents, Index, select(Document), {**values, "unique_key": Document.key}
        )

    documents.commit()
    assert keys(documents) == []


def test_select_waits_for_senders(session: Session, db: Engine) -> None:
    """It does not know its keys beforehand, so it waits for all that have one."""
    with Session(db) as other:
        other.add(Ping(unique_key="a"))
        other.flush()
        session.execute(text("SET LOCAL lock_timeout = '100ms'"))
        values = {"unique_key": Document.key, "on_conflict": "skip"}
        with pytest.raises(Exception, match="lock timeout"):
            enqueue_select(session, Ping, select(Document), values)
