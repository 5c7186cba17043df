"""`install`: raw INSERTs of job classes through a session are checked and wake."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, bindparam, event, insert, select
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_jobs import JobValueError, install
from sqla_jobs._store import wake
from tests.conformance.enqueue_kit import (
    Base,
    Bill,
    Ear,
    Invoice,
    Job,
    Ping,
    Send,
    executed,
    in_schema,
    schema_for,
)

JOBS: Any = Job.__table__
INVOICES: Any = Invoice.__table__


@pytest.fixture(scope="module")
def db(engine: Engine) -> Iterator[Engine]:
    """Yield an engine on this module's tables."""
    with schema_for(Base, engine) as name:
        yield in_schema(engine, name)


@pytest.fixture
def maker(db: Engine) -> sessionmaker[Session]:
    """Return a sessionmaker with the hook."""
    wake.forget_recent()
    return install(sessionmaker(db))


@pytest.mark.parametrize(
    ("statement", "row"),
    [(insert(Ping), {"queue": "a"}), (insert(JOBS), {"kind": "ping"})],
    ids=["class", "table"],
)
def test_raw_inserts_wake(
    maker: sessionmaker[Session], db: Engine, statement: Any, row: Any
) -> None:
    """Runners hear of rows that no flush has seen, once."""
    ear = Ear(db)
    with maker() as session:
        session.execute(statement, [row, row])
        session.commit()

    assert ear.heard() == 1
    ear.close()


def test_unknown_keys_are_refused(maker: sessionmaker[Session], db: Engine) -> None:
    """SQLAlchemy would drop them; nothing is executed."""
    rows: list[dict[str, Any]] = [
        {"invoice_id": 1},
        {"nota": "a", "invoice_id": 1, "x": 1},
    ]
    text = r"insert\(Bill\): no such column: 'nota', 'x'"
    with (
        maker() as session,
        executed(db) as seen,
        pytest.raises(JobValueError, match=text),
    ):
        session.execute(insert(Bill), rows)

    assert seen == []


def test_argument_keys_are_refused_with_the_way_out(
    maker: sessionmaker[Session],
) -> None:
    """An Arg is no column: the error names `enqueue_many`."""
    with maker() as session:
        with pytest.raises(
            JobValueError,
            match=r"'subject' would be lost.*enqueue_many\(session, Send, rows\)",
        ):
            session.execute(insert(Send), [{"subject": "x"}])
        with pytest.raises(JobValueError, match="'subject' would be lost"):
            session.execute(insert(Send), {"subject": "x"})


def test_bound_parameters_are_no_columns(maker: sessionmaker[Session]) -> None:
    """Names of a statement's own parameters may be given."""
    with maker() as session:
        statement = insert(Ping).values(queue=bindparam("q"))
        session.execute(statement, {"q": "a"})

        assert session.scalar(select(Ping.queue)) == "a"


def test_other_statements_are_untouched(
    maker: sessionmaker[Session], db: Engine
) -> None:
    """Queries and INSERTs of other classes neither fail nor wake."""
    ear = Ear(db)
    with maker() as session:
        session.execute(insert(Invoice), [{"title": "x", "unknown": 1}])
        session.execute(insert(INVOICES), {"title": "y"})
        assert len(session.scalars(select(Invoice)).all()) == 2
        session.commit()

    assert ear.heard() == 0
    ear.close()


def test_other_sessions_are_untouched(db: Engine) -> None:
    """The hook belongs to the sessionmaker it was installed for."""
    install(sessionmaker(db))
    ear = Ear(db)
    with sessionmaker(db)() as session:
        session.execute(insert(Ping), [{"queue": "x"}])
        session.commit()

    assert ear.heard() == 0
    ear.close()


class Own(Session):
    """A session class of the application."""


@pytest.mark.parametrize("wrap", [lambda m: m, scoped_session], ids=["maker", "scoped"])
def test_install_is_idempotent(
    db: Engine, wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returns what it was given, and a second call adds nothing."""
    target = wrap(sessionmaker(db))

    assert install(install(target)) is target
    noted: list[Any] = []
    monkeypatch.setattr(wake, "note", lambda *args: noted.append(args))
    with target() as session:
        session.execute(insert(Ping), [{"queue": "a"}])
    assert len(noted) == 1


def test_install_on_a_class(db: Engine) -> None:
    """A Session class of the application can be given."""
    assert install(Own) is Own
    with Own(db) as session, pytest.raises(JobValueError):
        session.execute(insert(Send), [{"subject": "x"}])


def test_install_on_an_async_sessionmaker(db: Engine, dsn: str) -> None:
    """The sessions inside its AsyncSessions are watched, no others."""
    schema = db.get_execution_options()["schema_translate_map"][None]

    async def main() -> None:
        engine = in_schema(create_async_engine(dsn), schema)
        maker = async_sessionmaker(engine)
        assert install(install(maker)) is maker
        async with maker() as session:
            with pytest.raises(JobValueError, match="enqueue_many"):
                await session.execute(insert(Send), [{"subject": "x"}])
        async with AsyncSession(engine) as other:
            await other.execute(insert(Send), [{"subject": "dropped"}])
        await engine.dispose()

    asyncio.run(main())


class OwnSync(Session):
    """A session class of the application, for its async sessions."""


class OwnAsync(AsyncSession):
    """An async session class of the application."""

    sync_session_class = OwnSync


def test_install_on_an_async_class() -> None:
    """Its own sync class is watched."""
    assert install(OwnAsync) is OwnAsync
    assert list(OwnAsync().sync_session.dispatch.do_orm_execute)


@pytest.mark.parametrize("target", [object(), int, "Session"])
def test_install_refuses_other_things(target: Any) -> None:
    """The error says what it needs."""
    with pytest.raises(JobValueError, match="needs a sessionmaker"):
        install(target)


def test_no_session_is_watched_by_default() -> None:
    """Only `install` listens to what sessions execute."""
    assert not event.contains(Session, "do_orm_execute", install)
    assert not list(Session().dispatch.do_orm_execute)
