"""`listen_url`: which connection listens, and what is refused."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, create_mock_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_jobs import JobValueError
from sqla_jobs._notify import checked_url, direct_engine, shown
from tests.runner.harness import Base, Kit

HIDDEN = "postgresql+psycopg://me:secret@127.0.0.1:1/db?connect_timeout=1"
SYNC = create_mock_engine("postgresql+psycopg://", print)
ASYNC = create_async_engine("postgresql+asyncpg://").sync_engine


@pytest.mark.parametrize("value", ["here", "", "host=a password=secret", 3, b"x"])
def test_what_is_no_url_is_refused_without_its_password(value: Any) -> None:
    """The message has the value and an example."""
    with pytest.raises(JobValueError, match="is no database URL; write ") as caught:
        checked_url(value)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "url", "message"),
    [
        (SYNC, "postgresql+asyncpg://a:secret@b", "'asyncpg' cannot listen for a Runn"),
        (ASYNC, "postgresql+psycopg2://a", "'psycopg2' cannot listen for an Async"),
        (
            SYNC,
            "postgresql+pg8000://a:secret@b",
            "listen_url='postgresql\\+pg8000://a:",
        ),
        (SYNC, "sqlite://", "the driver 'pysqlite' cannot listen for a Runner"),
        (SYNC, "postgresql+nothing://a:secret@b", "listen_url='postgresql.nothing://"),
        (SYNC, "postgres://a:secret@b", "dialects:postgres; write postgresql"),
        (ASYNC, "postgresql://a?no=such", None),
    ],
)
def test_driver_must_be_able_to_listen(
    engine: Any, url: str, message: str | None
) -> None:
    """Refused when the runner is made, without the password."""
    if message is None:
        direct = direct_engine(make_url(url), like=engine)
        assert direct is not None
        assert direct.dialect.driver == "asyncpg"
        return

    with pytest.raises(JobValueError, match=message) as caught:
        direct_engine(make_url(url), like=engine)

    assert "secret" not in str(caught.value)
    assert "Error" not in str(caught.value)


def test_password_is_hidden_wherever_it_is() -> None:
    """A URL of several hosts has it in its query."""
    url = "postgresql+psycopg://me:one@/db?host=a:1&host=b:2&password=two"

    assert shown(make_url(url)) == (
        "postgresql+psycopg://me:***@/db?host=a%3A1&host=b%3A2&password=..."
    )


@pytest.mark.parametrize("shell", ["threads", "aio"])
def test_runner_is_refused_or_changed_as_a_whole(
    shell: str, dsn: str, engine: Engine
) -> None:
    """The option is checked when it is given, also later by `configure`."""
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, shell)
    other = "psycopg2" if shell == "aio" else "asyncpg"
    bad = make_url(dsn).set(drivername=f"postgresql+{other}")

    with pytest.raises(JobValueError, match="cannot listen"):
        kit.make(listen_url=bad)

    runner: Any = kit.make()
    assert kit.make()._direct is None
    with pytest.raises(JobValueError, match="cannot listen"):
        runner.configure(listen_url=bad, poll=timedelta(seconds=7))
    assert [runner._direct, runner.options.listen_url] == [None, None]
    assert runner.options.poll != timedelta(seconds=7)
    runner.configure(listen_url=dsn)
    assert runner._direct.url == make_url(dsn)
    kit.close()


@pytest.mark.parametrize("shell", ["threads", "aio-asyncpg"])
def test_runner_listens_there_and_nowhere_else(
    shell: str, dsn: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody listens there are no wake-ups, and the log hides the password."""
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, shell)

    async def run(job: Any, ctx: Any) -> None:
        pass

    kit.handle(run)
    try:
        with caplog.at_level(logging.WARNING, "sqla_jobs"):
            kit.run(listen_url=HIDDEN)
            lost = "lost the wake-up connection to postgresql+psycopg://me:***@127"
            kit.until(lambda: lost in caplog.text)
            (job,) = kit.add()
            kit.until_state(job, "completed")  # by a poll
        listening = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        assert not kit.sql(f"{listening} AND datname = current_database()")
    finally:
        kit.close()
    assert "secret" not in caplog.text


def test_engine_of_the_listener_keeps_no_connection(dsn: str) -> None:
    """The listener's one connection is closed when it is lost, and no pool has more."""
    like = create_engine(dsn)

    direct = direct_engine(make_url(dsn), like=like)

    assert direct is not None
    with direct.connect():
        pass
    assert direct.pool.status() == "NullPool"
    like.dispose()
