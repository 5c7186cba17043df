"""No value of a job, a row or a DSN is seen in logs, errors and listings."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import (
    create_engine,
    func,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import claim, explain, history
from sqla_jobs._core.conceal import conceal
from sqla_jobs._core.text import error_text, traceback_text
from sqla_jobs._notify.base import _Health
from sqla_jobs._store.base import connection_of, execute
from sqla_jobs._store.listing import Filter, list_jobs
from sqla_jobs.models import job_tables
from sqla_jobs.runner.control import Outage
from tests.security.app import CANARY, Job, Pay, Person, person
from tests.security.conftest import DRIVERS, Lines

Work = Callable[[Any, Any], Any]


def unique(job: Any, session: Session) -> None:
    """Break a unique constraint: PostgreSQL's DETAIL has the key."""
    session.add_all([person(), person()])
    session.flush()


def null(job: Any, session: Session) -> None:
    """Leave out a column: DETAIL has the whole row."""
    session.add(person(age=None))
    session.flush()


def check(job: Any, session: Session) -> None:
    """Break a CHECK, in a flush that a query began."""
    session.add(person(age=-1))
    session.scalars(select(Person)).all()


def cast(job: Any, session: Session) -> None:
    """Let the server read the canary, with a quote and a line end, as a number."""
    value = f"\n{CANARY}\"'"
    session.execute(text("SELECT CAST(CAST(:x AS text) AS int)"), {"x": value})


def wrong_type(job: Any, session: Session) -> None:
    """Give a number column a text; asyncpg refuses it itself."""
    session.add(person(age=CANARY))
    session.flush()


def wrong_enum(job: Any, session: Session) -> None:
    """Give an enum column another text; SQLAlchemy refuses it itself."""
    session.add(person(mood=CANARY))
    session.flush()


def many(job: Any, session: Session) -> None:
    """Break a constraint by one of many rows."""
    rows = [{"email": f"{CANARY}{n % 2}", "age": 1} for n in range(5)]
    session.execute(insert(Person), rows)


def wrapped(job: Any, session: Session) -> None:
    """Raise an error of the application's from the database's."""
    try:
        unique(job, session)
    except IntegrityError as exc:
        raise RuntimeError("not saved") from exc


def grouped(job: Any, session: Session) -> None:
    """Raise the database's error as a member of a group."""
    try:
        unique(job, session)
    except IntegrityError as exc:
        raise ExceptionGroup("several", [exc]) from None


def result(job: Any, session: Session) -> Any:
    """Return what JSON cannot hold."""
    return {"a": {CANARY: CANARY.encode()}}


def wrong_argument(job: Any, session: Session) -> None:
    """Give an argument a value of another type."""
    job.card = CANARY.encode()


def wrong_secret(job: Any, session: Session) -> None:
    """Give a secret argument a value that JSON cannot hold."""
    job.token = f"{CANARY}\0"


def own_row(job: Any, session: Session) -> None:
    """Write what the job's own row cannot hold."""
    session.execute(
        update(Pay).where(Pay.id == job.id).values(memo=CANARY, attempt=None)
    )


def local(job: Any, session: Session) -> None:
    """Fail beside a local variable that has the canary."""
    password = CANARY
    raise ValueError(f"wrong password of {len(password)} characters")


WORKS: list[Work] = [
    *(unique, null, check, cast, wrong_type, wrong_enum, many, wrapped, grouped),
    *(result, wrong_argument, wrong_secret, own_row, local),
]


def handler_of(driver: str) -> Any:
    """Return a handler that does what the job's number says."""
    if driver != "asyncpg":
        return lambda job, ctx: WORKS[job.priority](job, ctx.session)

    async def run(job: Any, ctx: Any) -> Any:
        work = WORKS[job.priority]
        return await ctx.session.run_sync(lambda session: work(job, session))

    return run


def enqueue(maker: sessionmaker[Session], count: int = len(WORKS)) -> None:
    """Enqueue jobs that have the canary wherever a job has data."""
    with maker.begin() as session:
        for number in range(count):
            job = Pay(
                priority=number,
                token=CANARY,
                card=CANARY,
                keys={CANARY: 1},
                memo=CANARY,
                payload_bytes=CANARY.encode(),
                meta={"m": CANARY},
            )
            session.add(job)
            session.flush()
            job.checkpoint = {"c": CANARY}


def seen(maker: sessionmaker[Session]) -> dict[str, str]:
    """Return what people see of the jobs, by where."""
    tables, found = job_tables(Job), dict[str, str]()
    with maker() as session:
        jobs = session.scalars(select(Job).order_by(Job.id)).all()
        assert all(job.attempt == 1 or job.reason for job in jobs)
        found["list"] = repr(list_jobs(session, tables, Filter(), limit=100))
        found["jobs"] = repr(jobs)
        for job in jobs:
            found[f"explain {job.id}"] = repr(asdict(explain(session, Job, job.id)))
            tried = [
                (one.error, one.traceback) for one in history(session, Job, job.id)
            ]
            found[f"attempts {job.id}"] = repr(tried)
    return found


@pytest.mark.parametrize("driver", DRIVERS)
def test_failures_of_handlers_show_no_value(
    driver: str,
    drain: Callable[..., None],
    maker: sessionmaker[Session],
    logged: Lines,
) -> None:
    """
    Neither the row, its attempts, listings, explanations nor any log record repeats
    parameters, keys, rows or values of what failed; on_error gets no more either.
    """
    enqueue(maker)
    told = list[str]()

    drain(driver, handler_of(driver), on_error=lambda *args: told.append(repr(args)))

    found = seen(maker) | {"log": logged.text, "on_error": repr(told)}
    assert [where for where, text in found.items() if CANARY in text] == []
    failures = re.findall("^job .* failed in attempt", logged.text, re.MULTILINE)
    assert len(failures) == len(told) == len(WORKS)
    with maker() as session:
        errors = session.scalars(select(Job.last_error).order_by(Job.priority)).all()
    expected = [
        'duplicate key value violates unique constraint "sec_people_email_key"',
        'null value in column "age"',
        'violates check constraint "sec_people_age"',
        "invalid input syntax for type integer ***",
        "in",  # of asyncpg: invalid input for query argument; of the server: syntax
        "StatementError: (builtins.LookupError) ***",
        "duplicate key value",
        "RuntimeError: not saved",
        "ExceptionGroup: several (1 sub-exception)",
        "PayloadError: result.a[***]: *** is a bytes, which JSON cannot hold",
        "PayloadError: Pay.card: expected str, got *** (bytes)",
        "PayloadError: Pay.token: expected str that JSON can hold, got *** (str)",
        'null value in column "attempt"',
        "ValueError: wrong password of 19 characters",
    ]
    for error, part in zip(errors, expected, strict=True):
        assert part in str(error)


def test_error_of_on_error_shows_no_value(
    drain: Callable[..., None], maker: sessionmaker[Session], logged: Lines
) -> None:
    """What the application's own reporting raises is logged without values too."""
    enqueue(maker, 1)

    def report(job: Any, ctx: Any, exc: BaseException) -> None:
        with maker() as session:
            null(job, session)

    drain("psycopg", handler_of("psycopg"), on_error=report)

    assert "on_error itself failed" in logged.text
    assert CANARY not in logged.text


@pytest.mark.parametrize("driver", DRIVERS)
def test_payload_that_no_longer_decodes_is_not_shown(
    driver: str,
    drain: Callable[..., None],
    maker: sessionmaker[Session],
    logged: Lines,
) -> None:
    """The reason of such a job shows no secret; what is none it shows in part."""
    with maker.begin() as session:
        session.add_all([Pay(), Pay(priority=1)])
        session.flush()
        wrong = {"card": ["plain"]}, {"token": [CANARY]}
        for number, payload in enumerate(wrong):
            session.execute(
                update(Job).where(Job.priority == number).values(payload=payload)
            )

    drain(driver, handler_of(driver))

    with maker() as session:
        reasons = session.scalars(select(Job.reason).order_by(Job.priority)).all()
    assert str(reasons[0]).endswith("Pay.card: expected str, got ['plain'] (list)")
    assert str(reasons[1]).endswith("expected str that JSON can hold, got *** (list)")
    assert CANARY not in logged.text + repr(seen(maker))


def test_concealed_error_still_answers_programs(maker: sessionmaker[Session]) -> None:
    """Texts lose values; parameters and the driver's diagnostics can be asked for."""
    with maker() as session, pytest.raises(IntegrityError) as info:
        unique(None, session)
    exc: Any = info.value
    assert CANARY in str(exc)

    assert CANARY not in error_text(exc) + traceback_text(exc)

    assert CANARY in repr(exc.params)
    assert CANARY in exc.orig.diag.message_detail
    assert exc.orig.sqlstate == "23505"
    assert "[SQL: INSERT INTO sec_people" in str(exc)


def test_concealing_never_fails() -> None:
    """An exception that refuses to be changed stays as it is."""

    class StubbornError(Exception):
        hide_parameters = False

        def __setattr__(self, name: str, value: Any) -> None:
            raise TypeError(name)

    other = ValueError("b")
    one = StubbornError("a")
    other.__cause__ = other.__context__ = one

    conceal(other)

    assert (str(one), str(other)) == ("a", "b")


def test_own_statements_hide_parameters(maker: sessionmaker[Session]) -> None:
    """An error in a statement of the library's tells no parameter to its caller."""
    with maker() as session:
        connection = connection_of(session, job_tables(Job))
        assert not connection.engine.hide_parameters
        with pytest.raises(DBAPIError, match="integer") as info:
            execute(
                connection,
                job_tables(Job),
                lambda *_: text("SELECT CAST(CAST(:_sqlj_x AS text) AS int)"),
                {"x": f"x-{CANARY}"},
            )

    assert info.value.hide_parameters
    assert "[SQL parameters hidden" in str(info.value)


def test_representations_show_no_data(
    dsn: str, maker: sessionmaker[Session], drain: Callable[..., None]
) -> None:
    """Jobs, claims, contexts, runners and engines may be logged by anybody."""
    enqueue(maker, 1)
    told = list[str]()

    def run(job: Any, ctx: Any) -> None:
        told.append(f"{job!r} {ctx!r} {ctx.session!r} {ctx.session.bind!r}")

    with maker() as session:
        (claimed,) = claim(session, Job)
        told.append(f"{claimed!r} {claimed.tables!r}")
        assert claimed.payload["token"] == CANARY
    drain("psycopg", run)

    assert len(told) == 2
    assert CANARY not in repr(told)


@pytest.mark.parametrize("driver", DRIVERS)
def test_outage_shows_no_password(driver: str, logged: Lines) -> None:
    """Who cannot connect says where to, and keeps the password."""
    url = make_url(f"postgresql+{driver}://me:{CANARY}@127.0.0.1:1/none")

    async def connect() -> None:
        async with create_async_engine(url).connect():
            pass

    try:
        if driver == "asyncpg":
            asyncio.run(connect())
        else:
            create_engine(url).connect()
    except (DBAPIError, OSError) as exc:
        Outage("runner").failed(exc)
        _Health(create_engine(url), lambda: None).lost(exc)

    assert logged.text.count("WARNING") == 2
    assert "127.0.0.1" in logged.text
    assert CANARY not in logged.text


def test_statement_error_without_an_origin_keeps_its_text() -> None:
    """Only what a driver or a type said of a value is taken out."""
    exc = StatementError("a plain text", None, None, None)

    assert error_text(exc) == "StatementError: a plain text"


def test_values_of_parameters_are_bound(maker: sessionmaker[Session]) -> None:
    """A comparison with an argument has its value among the parameters, not in SQL."""
    query = select(func.count()).where(Pay.token == CANARY)

    assert CANARY not in str(query.compile())
    with maker() as session:
        assert session.scalar(query) == 0
