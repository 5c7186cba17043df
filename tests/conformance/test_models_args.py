"""`Arg`s and the constructor of jobs, and arguments in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, insert, select
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from sqla_jobs import (
    Arg,
    JobMixin,
    JobState,
    JobValueError,
    PayloadError,
    arg,
    constant,
    custom,
)
from sqla_jobs.models import decode_payload, job_tables
from tests.conformance.model_kit import created


class Color(StrEnum):
    """An enum of text."""

    RED = "red"


class Level(IntEnum):
    """An enum of numbers."""

    HIGH = 3


@dataclass
class Address:
    """A nested value."""

    city: str
    since: datetime | None = None


def _no_wait(attempt: int) -> timedelta:
    return timedelta(0)


class Base(DeclarativeBase):
    """The application's."""


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "arg_jobs"


class Send(Job, kind="send", queue="mail"):
    """Has a required argument, defaults and a column."""

    to: Arg[str]
    copies: Arg[int] = arg(default=1)
    labels: Arg[list[str]] = arg(default_factory=list)
    address: Arg[Address | None] = arg(default=None)
    size: Mapped[int | None] = mapped_column()

    @hybrid_property
    def double_size(self) -> int:
        """Half of it is stored."""
        return (self.size or 0) * 2

    @double_size.inplace.setter
    def _double_size_setter(self, value: int) -> None:
        self.size = value // 2


class Typed(Job):
    """One argument of each sort."""

    text: Arg[str | None] = arg(default=None)
    whole: Arg[int | None] = arg(default=None)
    real: Arg[float | None] = arg(default=None)
    flag: Arg[bool | None] = arg(default=None)
    at: Arg[datetime | None] = arg(default=None)
    day: Arg[date | None] = arg(default=None)
    uuid: Arg[UUID | None] = arg(default=None)
    amount: Arg[Decimal | None] = arg(default=None)
    color: Arg[Color | None] = arg(default=None)
    level: Arg[Level | None] = arg(default=None)
    items: Arg[list[int] | None] = arg(default=None)
    place: Arg[Address | None] = arg(default=None)
    mixed: Arg[int | str | None] = arg(default=None)
    anything: Arg[Any] = arg(default=None)


class Stubborn(Job, backoff=custom(_no_wait)):
    """Its backoff is a function."""


class Later(Job):
    """Its type is defined below it."""

    what: Arg[Defined]


@dataclass
class Defined:
    """Is not there yet when `Later` is made."""

    x: int


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session on the tables of this file's classes."""
    with created(Base, engine) as session:
        yield session


def test_arguments_become_the_payload() -> None:
    """Arguments and their defaults are keys of the payload, decoded on access."""
    job = Send(to="a", address=Address("Rome"))

    assert job.payload == {
        "to": "a",
        "copies": 1,
        "labels": [],
        "address": {"city": "Rome", "since": None},
    }
    assert (job.to, job.copies, job.labels) == ("a", 1, [])
    assert job.address == Address("Rome")


def test_mutable_defaults_are_not_shared() -> None:
    """Each job has lists and dicts of its own."""

    class Shared(Job):
        labels: Arg[list[str]] = arg(default=["x"])
        made: Arg[list[str]] = arg(default_factory=list)

    one, other = Shared(), Shared()
    one.payload["labels"].append("y")
    one.payload["made"].append("y")

    assert (other.labels, other.made) == (["x"], [])


def test_payload_is_merged_with_arguments() -> None:
    """A payload given directly keeps its keys; arguments add theirs."""
    given = {"trace": 1, "to": "from payload"}

    job = Send(payload=given, copies=2)  # type: ignore[call-arg]

    assert job.payload["trace"] == 1
    assert (job.to, job.copies) == ("from payload", 2)
    assert given == {"trace": 1, "to": "from payload"}


def test_hybrids_are_keywords() -> None:
    """Whatever SQLAlchemy can set on the class is a keyword."""
    assert Send(to="a", double_size=6).size == 3  # type: ignore[call-arg]


def test_annotation_of_a_later_class() -> None:
    """An annotation may name what the module defines later."""
    assert Later(what=Defined(3)).what == Defined(3)


def test_annotation_of_a_local_class() -> None:
    """An annotation may name what only the enclosing function knows."""

    @dataclass
    class Inner:
        x: int

    class Local(Job, kind="args_local"):
        what: Arg[list[Inner]]

    assert Local(what=[Inner(3)]).payload == {"what": [{"x": 3}]}


def test_annotation_of_an_unknown_name() -> None:
    """A name that is never defined is named by the first job."""

    class Lost(Job):
        what: Arg[Undefined]  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TypeError, match=r"Lost\.what: .*'Undefined' is not found"):
        Lost(what=3)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({}, TypeError, r"Send\(\) missing 1 required keyword argument: 'to'"),
        ({"to": "a", "copeis": 2}, TypeError, "'copeis'; did you mean 'copies'"),
        ({"to": "a", "quueue": "m"}, TypeError, "'quueue'; did you mean 'queue'"),
        ({"to": "a", "state": "x"}, TypeError, "'state': the library writes it"),
        ({"to": "a", "kind": "x"}, TypeError, "'kind': the library writes it"),
        ({"to": 3}, PayloadError, r"Send\.to: expected str, got 3"),
        ({"to": None}, PayloadError, r"Send\.to: expected str"),
        ({"to": "\ud800"}, PayloadError, "lone surrogate"),
        ({"to": "a\0"}, PayloadError, "NUL"),
        ({"to": "a", "labels": ["x", 3]}, PayloadError, r"Send\.labels\[1\]: expected"),
        ({"to": "a", "payload": [1]}, JobValueError, r"payload=\[1\] must be a dict"),
        ({"to": "a", "queue": ""}, JobValueError, "must not be empty"),
        ({"to": "a", "queue": "q" * 201}, JobValueError, "at most 200"),
        ({"to": "a", "channel": 3}, JobValueError, "must be a string"),
        ({"to": "a", "priority": 2**15}, JobValueError, "from -32768 to 32767"),
        ({"to": "a", "max_attempts": 0}, JobValueError, "1 or more"),
        ({"to": "a", "timeout": timedelta(0)}, JobValueError, "above zero"),
        ({"to": "a", "lease": timedelta(seconds=1)}, JobValueError, "3 s or more"),
        ({"to": "a", "backoff": "5s"}, JobValueError, "must be a backoff"),
        ({"to": "a", "backoff": custom(_no_wait)}, JobValueError, "on the class"),
        ({"to": "a", "tags": "x"}, JobValueError, "must be a list of str"),
        ({"to": "a", "tags": [1]}, JobValueError, "must be a list of str"),
        ({"to": "a", "delay": timedelta(-1)}, JobValueError, "zero or more"),
        ({"to": "a", "delay": 5}, JobValueError, "must be a timedelta"),
        ({"to": "a", "run_at": 5}, JobValueError, "must be a datetime"),
        (
            {"to": "a", "run_at": datetime(2030, 1, 1)},  # noqa: DTZ001
            JobValueError,
            r"is naive; .*tzinfo=timezone\.utc",
        ),
    ],
)
def test_wrong_constructor_value(
    keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Each wrong value is refused where the job is made, with class and value."""
    with pytest.raises(error, match=message) as caught:
        Send(**keywords)

    assert "Send" in str(caught.value) or "payload=" in str(caught.value)


def test_missing_arguments_are_listed() -> None:
    """Several missing arguments are named at once."""

    class Two(Job, kind="two_missing"):
        a: Arg[int]
        b: Arg[int]

    with pytest.raises(
        TypeError, match="missing 2 required keyword arguments: 'a' and"
    ):
        Two()  # type: ignore[call-arg]


def test_root_is_no_job() -> None:
    """The root class has no kind, so it cannot be enqueued."""
    with pytest.raises(TypeError, match="Job makes the job table"):
        Job()


def test_run_at_schedules() -> None:
    """A job for later is `scheduled`, without one it is `available` and has no time."""
    soon = datetime.now(UTC) + timedelta(hours=1)

    later, now = Send(to="a", run_at=soon), Send(to="a")

    assert (later.state, later.run_at) == (JobState.SCHEDULED, soon)
    assert (now.state, now.__dict__.get("run_at")) == (JobState.AVAILABLE, None)


def test_delay_waits_for_the_flush() -> None:
    """A delay is kept for the flush, which knows the database's clock."""
    job, at_once = Send(to="a", delay=timedelta(5)), Send(to="a", delay=timedelta(0))

    assert (job.state, job._delay) == (JobState.SCHEDULED, timedelta(5))
    assert (at_once.state, at_once._delay) == (JobState.AVAILABLE, None)


@pytest.mark.parametrize("names", [("run_at", "delay"), ("delay", "run_at")])
def test_run_at_and_delay_exclude_each_other(names: tuple[str, str]) -> None:
    """Both at once are refused, in either order."""
    values: dict[str, Any] = {"run_at": datetime.now(UTC), "delay": timedelta(1)}

    with pytest.raises(JobValueError, match="run_at= or delay=, not both"):
        Send(to="a", **{name: values[name] for name in names})


def test_keywords_override_class_defaults() -> None:
    """Whatever a class sets, a job may set for itself."""
    job = Send(
        to="a",
        queue="other",
        channel="c",
        priority=-4,
        max_attempts=2,
        backoff=constant(timedelta(seconds=5)),
        timeout=timedelta(seconds=9),
        lease=timedelta(seconds=8),
        tags=["x", "y"],
        payload_bytes=b"\0",
        meta={"trace": "t"},
    )

    assert (job.queue, job.channel, job.priority) == ("other", "c", -4)
    assert (job.max_attempts, job.backoff) == (2, "constant(5)")
    assert (job.timeout, job.lease) == (timedelta(seconds=9), timedelta(seconds=8))
    assert (job.tags, job.payload_bytes, job.meta) == (
        ["x", "y"],
        b"\0",
        {"trace": "t"},
    )
    assert Stubborn(backoff=Stubborn.__job_options__.backoff).backoff == "custom"


def test_assignment_is_saved(session: Session) -> None:
    """Setting an argument of a loaded job is a change that the ORM sees."""
    session.add(Send(to="a"))
    session.commit()
    job = session.scalars(select(Send)).one()

    job.to = "b"
    session.commit()

    assert job.to == "b"
    with pytest.raises(PayloadError, match=r"Send\.to: expected str"):
        job.to = 3  # type: ignore[assignment]


def test_old_rows_have_new_defaults(session: Session) -> None:
    """A row from before an argument existed has its default, if there is one."""
    session.execute(insert(Send), [{"payload": {}}])
    job = session.scalars(select(Send)).one()

    assert (job.copies, job.labels) == (1, [])
    with pytest.raises(PayloadError, match=r"<Send id=1 .*Send\.to: .*no key 'to'"):
        _ = job.to


def test_row_that_no_longer_decodes(session: Session) -> None:
    """Loading such a row works; the access and decode_payload name job and key."""
    session.execute(insert(Send), [{"payload": {"to": "a", "copies": "many"}}])
    job = session.scalars(select(Send)).one()

    assert job.to == "a"
    with pytest.raises(PayloadError, match=r"<Send id=1 .*Send\.copies: expected int"):
        _ = job.copies
    with pytest.raises(PayloadError, match=r"<Send id=1 .*Send\.copies: expected int"):
        decode_payload(job)


def test_decode_payload_accepts_good_rows(session: Session) -> None:
    """Rows that decode, and rows of unmapped kinds, pass."""
    session.add(Send(to="a"))
    session.flush()
    session.connection().execute(insert(job_tables(Job).table).values(kind="unmapped"))

    for job in session.scalars(select(Job)):
        decode_payload(job)


VALUES: dict[str, tuple[Any, Any]] = {
    "text": ("Hi", "Ho"),
    "whole": (10**30, 7),
    "real": (1.5, 2.0),
    "flag": (True, False),
    "at": (
        # As text the first is greater than the second.
        datetime(2030, 1, 2, tzinfo=timezone(timedelta(hours=9))),
        datetime(2030, 1, 1, 23, tzinfo=UTC),
    ),
    "day": (date(2030, 1, 1), date(2029, 12, 31)),
    "uuid": (UUID(int=1), UUID(int=2)),
    "amount": (Decimal("9.50"), Decimal(10)),
    "color": (Color.RED, None),
    "level": (Level.HIGH, None),
    "items": ([1, 2], [2, 1]),
    "place": (Address("Rome"), Address("Oslo", datetime(2030, 1, 1, tzinfo=UTC))),
    "mixed": (3, "3"),
    "anything": ({"a": [1]}, "x"),
}


@pytest.mark.parametrize("name", VALUES)
def test_argument_in_sql(session: Session, name: str) -> None:
    """In SQL an argument compares with, and comes back as, values of its own type."""
    one, other = VALUES[name]
    session.add_all([Typed(**{name: one}), Typed(**{name: other}), Typed()])
    session.flush()
    key = getattr(Typed, name)

    def found(*conditions: Any) -> list[Any]:
        return list(session.scalars(select(key).where(*conditions).order_by(Typed.id)))

    given = [value for value in (one, other) if value is not None]
    assert found(key == one) == [one]
    assert found(key.in_([one])) == [one]
    assert found(key.is_not(None)) == given
    assert found(key.is_(None)) == [None] * (3 - len(given))
    assert found(key != one) == given[1:]


@pytest.mark.parametrize("name", ["whole", "real", "amount", "at", "day"])
def test_argument_order_in_sql(session: Session, name: str) -> None:
    """Numbers order as numbers, and times as times, in SQL."""
    values = sorted(VALUES[name])
    session.add_all([Typed(**{name: value}) for value in reversed(values)])
    session.flush()
    key = getattr(Typed, name)

    assert session.scalars(select(key).order_by(key)).all() == values
    assert session.scalars(select(key).where(key > values[0])).all() == values[1:]


def test_argument_of_an_alias(session: Session) -> None:
    """aliased() re-targets arguments as it does columns."""
    session.add_all([Send(to="a", copies=1), Send(to="a", copies=2)])
    session.flush()
    other = aliased(Send)

    pairs = session.execute(
        select(Send.copies, other.copies.label("more"))
        .join(other, other.to == Send.to)
        .where(Send.copies < other.copies)
    ).all()

    assert [tuple(pair) for pair in pairs] == [(1, 2)]
    assert list(pairs[0]._fields) == ["copies", "more"]


def test_argument_of_a_parent_class(session: Session) -> None:
    """A subclass has its parent's arguments, as attributes and in SQL."""

    class SendFast(Send, kind="args_send_fast"):
        speed: Arg[int] = arg(default=3)

    session.add(SendFast(to="a"))
    session.flush()

    found = session.scalars(
        select(SendFast).where(SendFast.to == "a", SendFast.speed == 3)
    ).one()
    assert (found.to, found.speed) == ("a", 3)


class Plain(Enum):
    """An enum whose values are neither text nor numbers alone."""

    A = "a"
    B = 1


def test_enum_of_mixed_values(session: Session) -> None:
    """Enum members of several JSON types keep apart in SQL."""

    class Pick(Job, kind="args_pick"):
        one: Arg[Plain]

    session.add_all([Pick(one=Plain.A), Pick(one=Plain.B)])
    session.flush()

    assert session.scalars(select(Pick.one).where(Pick.one == Plain.B)).all() == [
        Plain.B
    ]
