"""Every payload type survives the database exactly; found by property tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Literal, TypedDict
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Arg, JobMixin, arg
from sqla_jobs.models import validate
from tests.conformance.model_kit import created


class Color(StrEnum):
    """An enum of text."""

    RED = "red"
    BLUE = "blue"


class Level(Enum):
    """An enum of numbers."""

    LOW = 1
    HIGH = 2


@dataclass
class Point:
    """A nested value."""

    x: float
    name: str | None = None


@dataclass
class Shape:
    """A value that nests others."""

    points: list[Point] = field(default_factory=list)
    color: Color = Color.RED
    made: datetime | None = None


class Size(TypedDict):
    """A dict with known keys."""

    width: int
    height: float


class Base(DeclarativeBase):
    """The application's."""


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "payload_jobs"


class Everything(Job):
    """One argument of each type."""

    text: Arg[str | None] = arg(default=None)
    whole: Arg[int | None] = arg(default=None)
    real: Arg[float | None] = arg(default=None)
    flag: Arg[bool | None] = arg(default=None)
    at: Arg[datetime | None] = arg(default=None)
    day: Arg[date | None] = arg(default=None)
    clock: Arg[time | None] = arg(default=None)
    span: Arg[timedelta | None] = arg(default=None)
    uuid: Arg[UUID | None] = arg(default=None)
    amount: Arg[Decimal | None] = arg(default=None)
    color: Arg[Color | None] = arg(default=None)
    level: Arg[Level | None] = arg(default=None)
    mode: Arg[Literal["fast", 3] | None] = arg(default=None)
    numbers: Arg[list[int] | None] = arg(default=None)
    pair: Arg[tuple[int, str] | None] = arg(default=None)
    prices: Arg[dict[str, Decimal] | None] = arg(default=None)
    size: Arg[Size | None] = arg(default=None)
    shape: Arg[Shape | None] = arg(default=None)
    choice: Arg[int | str | list[bool] | None] = arg(default=None)
    anything: Arg[Any] = arg(default=None)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
# PostgreSQL's numbers have no negative zero: adding 0.0 removes it.
REAL = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)
OFFSETS = st.integers(-840, 840).map(lambda m: timezone(timedelta(minutes=m)))
WHEN = st.datetimes(
    min_value=datetime(2, 1, 1),  # noqa: DTZ001
    max_value=datetime(9998, 1, 1),  # noqa: DTZ001
    timezones=st.one_of(st.just(UTC), OFFSETS),
)
POINT = st.builds(Point, x=REAL, name=st.none() | TEXT)
SHAPE = st.builds(
    Shape,
    points=st.lists(POINT, max_size=3),
    color=st.sampled_from(Color),
    made=st.none() | WHEN,
)
# JSONB keeps an untyped 1e16 as a number without a fraction: it comes back as an int.
LEAF = st.none() | st.booleans() | st.integers() | TEXT
JSON = st.recursive(
    LEAF | st.floats(-1e15, 1e15).map(lambda x: x + 0.0),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=8,
)

TYPES: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXT,
    "whole": st.integers(),
    "real": REAL,
    "flag": st.booleans(),
    "at": WHEN,
    "day": st.dates(),
    "clock": st.times().map(lambda t: t.replace(fold=0)),
    "span": st.timedeltas(),
    "uuid": st.uuids(),
    "amount": st.decimals(allow_nan=False, allow_infinity=False),
    "color": st.sampled_from(Color),
    "level": st.sampled_from(Level),
    "mode": st.sampled_from(["fast", 3]),
    "numbers": st.lists(st.integers(), max_size=5),
    "pair": st.tuples(st.integers(), TEXT),
    "prices": st.dictionaries(
        TEXT, st.decimals(allow_nan=False, allow_infinity=False), max_size=3
    ),
    "size": st.fixed_dictionaries({"width": st.integers(), "height": REAL}),
    "shape": SHAPE,
    "choice": st.integers() | TEXT | st.lists(st.booleans(), max_size=3),
    "anything": JSON,
}


@pytest.fixture(scope="module")
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session on the tables of this file's classes."""
    with created(Base, engine) as session:
        yield session


def test_every_argument_is_tested() -> None:
    """The list of strategies is complete."""
    arguments = {name for name, one in vars(Everything).items() if isinstance(one, Arg)}

    assert arguments == TYPES.keys()


def _same(one: Any, other: Any) -> bool:
    # Decimal("1.0") == Decimal("1.00") and 1 == True == 1.0, yet they are not the same.
    # An object's keys have no order in JSONB.
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return repr(one) == repr(other)


@given(values=st.fixed_dictionaries({}, optional=TYPES))
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
def test_payload_round_trip(session: Session, values: dict[str, Any]) -> None:
    """What was given is what a handler reads after the database had it."""
    job = Everything(**values)
    validate(job)
    session.add(job)
    session.flush()
    session.expunge_all()

    loaded = session.scalars(select(Everything).where(Everything.id == job.id)).one()

    for name, value in values.items():
        found = getattr(loaded, name)
        if isinstance(value, datetime):
            assert found == value
            assert found.utcoffset() == value.utcoffset()
        elif name == "shape":
            assert found == value
        else:
            assert _same(found, value), (name, value, found)
    session.rollback()


@given(value=st.data())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.parametrize("name", sorted(TYPES.keys() - {"anything"}))
def test_payload_is_found_by_its_value(
    session: Session, name: str, value: st.DataObject
) -> None:
    """A job is found by comparing its argument with the value it was given."""
    given_value = value.draw(TYPES[name])
    job = Everything(**{name: given_value})
    session.add(job)
    session.flush()

    found = session.scalars(
        select(Everything.id).where(getattr(Everything, name) == given_value)
    ).all()

    assert found == [job.id]
    session.rollback()
