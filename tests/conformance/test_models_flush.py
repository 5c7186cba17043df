"""What `validate` refuses at flush, whoever wrote the job's attributes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, func, select, update
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
)

from sqla_jobs import Arg, JobMixin, JobValueError, PayloadError, arg
from sqla_jobs.models import validate
from tests.conformance.model_kit import created


class Base(DeclarativeBase):
    """The application's."""


class Invoice(Base):
    """A domain class."""

    __tablename__ = "flush_invoices"

    id: Mapped[int] = mapped_column(primary_key=True)


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "flush_jobs"


class Send(Job):
    """Requires an invoice and a size."""

    note: Arg[str] = arg(default="")
    size: Mapped[int] = mapped_column()
    copies: Mapped[int] = mapped_column(default=1)
    rank: Mapped[int] = mapped_column(server_default="5")
    invoice_id: Mapped[int] = mapped_column(ForeignKey(Invoice.id))
    invoice: Mapped[Invoice] = relationship()


class SendFast(Send):
    """Requires what its parent does."""


class Import(Job):
    """Requires a column of its own table."""

    __tablename__ = "flush_imports"

    path: Mapped[str] = mapped_column()


class Small(Job):
    """Has a payload limit of its own."""

    __payload_limit__ = 20


class Plain(Job):
    """Has nothing of its own."""


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session on the tables of this file's classes."""
    with created(Base, engine) as session:
        yield session


def test_complete_jobs_pass() -> None:
    """Required columns are satisfied by values, defaults and relationships."""
    validate(Send(size=1, invoice_id=3))
    validate(SendFast(size=1, invoice=Invoice()))
    validate(Send(size=1, invoice_id=func.lastval()))
    validate(Import(path="x"))
    validate(Plain(run_at=datetime.now(UTC)))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Send(invoice_id=1), r"Send\.size is None, but Send requires it"),
        (Send(size=1), r"Send\.invoice_id is None"),
        (SendFast(size=1), r"SendFast\.invoice_id is None"),
        (Import(), r"Import\.path is None"),
    ],
)
def test_missing_column_is_named(job: Any, message: str) -> None:
    """A column that a class requires is nullable on the table, but not at flush."""
    with pytest.raises(JobValueError, match=message):
        validate(job)


def test_other_kinds_need_not_have_it(session: Session) -> None:
    """The shared table accepts jobs of other kinds, and defaults still apply."""
    session.add(Invoice(id=1))
    session.flush()
    session.add_all([Plain(), Send(size=1, invoice_id=1)])
    session.commit()

    row = session.execute(select(Send.copies, Send.rank)).one()
    assert tuple(row) == (1, 5)
    # A deploy that does not know the class inserts without them.
    columns = Job.__jobs__.table.c
    assert columns.size.nullable
    assert columns.copies.nullable
    assert not columns.rank.nullable


def test_unloaded_column_is_not_missing(session: Session) -> None:
    """A persistent job is checked on what is loaded only, without SQL."""
    session.add(Send(size=1, invoice=Invoice(id=1)))
    session.commit()
    job = session.scalars(select(Send)).one()
    session.expire(job, ["size"])
    job.priority = 3

    validate(job)
    job.size = None  # type: ignore[assignment]
    with pytest.raises(JobValueError, match=r"Send\.size is None"):
        validate(job)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": float("nan")}, r"Plain\.payload\.x: nan is not finite"),
        ({"x": [1, float("inf")]}, r"Plain\.payload\.x\[1\]: inf is not finite"),
        ({"x": "a\0"}, "NUL"),
        ({"x": "\udc00"}, "lone surrogate"),
        ({"x": {1, 2}}, "is a set, which JSON cannot hold; use a sorted list"),
        ({"x": b"1"}, "is a bytes, which JSON cannot hold; put it into payload_bytes"),
        ({1: 2}, "the key 1 is not a str"),
        ({"x": "y" * 1_000_000}, "above the limit of 1,000,000"),
        (None, "must be a dict"),
        ([], "must be a dict"),
    ],
)
def test_changed_payload_is_checked(value: Any, message: str) -> None:
    """A payload written past the constructor is refused too, with the place in it."""
    job = Plain()
    job.payload = value

    with pytest.raises((PayloadError, JobValueError), match=message):
        validate(job)


def test_payload_limit_is_the_classs() -> None:
    """__payload_limit__ counts bytes of JSON text and can be set per class."""
    validate(Small(payload={"x": "y" * 12}))

    with pytest.raises(
        PayloadError, match=r"21 bytes .* limit of 20; .*__payload_limit__"
    ):
        validate(Small(payload={"x": "y" * 13}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("queue", "", "must not be empty"),
        ("queue", None, "must be a string"),
        ("channel", 3, "must be a string"),
        ("priority", 40_000, "from -32768"),
        ("max_attempts", 0, "1 or more"),
        ("timeout", timedelta(0), "above zero"),
        ("lease", timedelta(seconds=2), "3 s or more"),
        ("run_at", datetime(2030, 1, 1), "naive"),  # noqa: DTZ001
    ],
)
def test_changed_option_is_checked(name: str, value: Any, message: str) -> None:
    """Options assigned after construction have the same limits."""
    job = Plain()
    setattr(job, name, value)

    with pytest.raises(JobValueError, match=message) as caught:
        validate(job)

    assert f"Plain.{name} = " in str(caught.value)


def test_sql_expressions_pass() -> None:
    """A value that the database computes cannot be checked, and is let through."""
    job = Plain()
    job.run_at = func.now()
    job.priority = func.least(1, 2)
    job.payload = func.jsonb_build_object()

    validate(job)


def test_rows_of_unmapped_kinds_pass(session: Session) -> None:
    """A job that loaded as the root may be changed."""
    session.add(Plain())
    session.flush()
    session.connection().execute(update(Job.__jobs__.table).values(kind="unmapped"))
    session.expunge_all()
    job = session.scalars(select(Job)).one()
    job.priority = 3

    validate(job)
