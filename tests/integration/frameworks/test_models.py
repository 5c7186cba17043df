"""Jobs with pydantic models and msgspec structs, run by both runners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sqla_jobs import (
    Arg,
    AsyncRunner,
    JobMixin,
    PayloadError,
    Runner,
    arg,
    enqueue_many,
)
from tests.unit.model_types import (
    NOON,
    PARIS,
    VALUES,
    Box,
    Circle,
    Login,
    Meeting,
    Oval,
    Pair,
    Parcel,
    Pet,
    Place,
    Size,
)


class Base(DeclarativeBase):
    """The application's."""


class Job(JobMixin, Base):
    """The job system."""

    __tablename__ = "jobs"


class Everything(Job):
    """An argument for each of the types."""

    place: Arg[Place | None] = arg(default=None)
    parcel: Arg[Parcel | None] = arg(default=None)
    pets: Arg[list[Pet]] = arg(default_factory=list)
    box: Arg[Box[Place] | None] = arg(default=None)
    meeting: Arg[Meeting | None] = arg(default=None)
    sizes: Arg[dict[str, Size]] = arg(default_factory=dict)
    shape: Arg[Circle | Oval | None] = arg(default=None)
    pair: Arg[Pair | None] = arg(default=None)


class Send(Job, kind="send", max_attempts=1):
    """Returns what it was given; a login cannot be stored."""

    place: Arg[Place]

    def run(self, ctx: Any) -> Any:
        """Return the model, or what is no result."""
        return Login(password="x") if self.place.city == "bad" else self.place  # type: ignore[arg-type]


class AsyncSend(Job, kind="async_send", max_attempts=1):
    """The same, with a struct, for asyncio."""

    place: Arg[Size]

    async def run(self, ctx: Any) -> Size:
        """Return the struct."""
        return self.place


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[Engine]:
    """Yield an engine on the tables."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def run_threads(engine: Engine) -> None:
    """Run what is due in threads."""
    Runner(sessionmaker(engine), Job, listen=False).run_until_idle()


def run_aio(engine: Engine) -> None:
    """Run what is due on a loop."""

    async def run() -> None:
        own = create_async_engine(engine.url)
        await AsyncRunner(async_sessionmaker(own), Job, listen=False).run_until_idle()
        await own.dispose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "good", "old", "expected", "run"),
    [
        (
            Send,
            PARIS,
            {"town": "Paris"},
            (
                {"city": "Paris", "postCode": "75001"},
                "Send.place: Place refuses what is stored: city: Field required",
            ),
            run_threads,
        ),
        (
            AsyncSend,
            Size(2.0),
            {"fullWidth": "wide"},
            (
                {"fullWidth": 2.0, "fullHeight": 0.0},
                "AsyncSend.place: Size refuses what is stored: ValidationError: Exp",
            ),
            run_aio,
        ),
    ],
    ids=["pydantic", "msgspec"],
)
def test_models_reach_the_handler_and_become_results(
    engine: Engine,
    kind: Any,
    good: Any,
    *,
    old: Any,
    expected: tuple[Any, str],
    run: Callable[[Engine], None],
) -> None:
    """A payload that no longer validates is discarded, with the library's reason."""
    result, problem = expected
    with Session(engine) as session:
        session.add(kind(place=good))
        stale = kind(place=good)
        stale.payload = {"place": old}
        session.add(stale)
        enqueue_many(session, kind, [{"place": good}] * 120)
        session.commit()

        run(engine)

        session.refresh(stale)
        assert stale.state == "discarded"
        assert problem in stale.reason
        done = session.scalars(select(kind).where(kind.state == "completed")).all()
        assert len(done) == 121
        assert all(job.result == result and job.place == good for job in done)


def test_model_that_cannot_be_a_result_fails_the_attempt(engine: Engine) -> None:
    """As any other value that JSON cannot hold does."""
    with Session(engine) as session:
        job = Send(place=Place(city="bad"))
        session.add(job)
        session.commit()

        run_threads(engine)

        session.refresh(job)
        assert job.state == "discarded"
        assert "result: Login.password" in (job.last_error or "")


@given(
    values=st.fixed_dictionaries({}, optional={n: v for n, (_, v) in VALUES.items()})
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_models_survive_the_database(engine: Engine, values: dict[str, Any]) -> None:
    """What was given is read back, and found by its value and by its parts."""
    with Session(engine) as session:
        job = Everything(**values)
        session.add(job)
        session.flush()
        session.expunge_all()

        query = select(Everything).where(Everything.id == job.id)
        for name, value in values.items():
            query = query.where(getattr(Everything, name).is_not_distinct_from(value))
        if values.get("place") is not None:
            part: Any = Everything.place
            query = query.where(
                part["postCode"].as_string() == values["place"].post_code
            )
        loaded = session.scalars(query).one()

        for name, value in values.items():
            assert getattr(loaded, name) == value
        session.rollback()


def test_default_model_is_made_for_each_job(engine: Engine) -> None:
    """Rows from before the argument existed have it too."""

    class Late(Job):
        """A kind with a model as its default."""

        meeting: Arg[Meeting] = arg(default_factory=lambda: Meeting(NOON))

    with Session(engine) as session:
        job = Late()
        session.add(job)
        session.flush()
        assert session.scalar(select(func.jsonb_typeof(Late.payload["meeting"]))) == (
            "object"
        )
        job.payload = {}
        assert job.meeting.minutes == 30
        with pytest.raises(PayloadError, match=r"Late\.meeting: expected Meeting"):
            job.meeting = {}  # type: ignore[assignment]
