"""`notify_runners`: wake-ups for rows that were inserted past the ORM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqla_jobs import JobValueError, notify_runners
from sqla_jobs._store import wake
from tests.conformance.enqueue_kit import (
    Base,
    Ear,
    Job,
    Ping,
    executed,
    in_schema,
    schema_for,
)

INSERT = insert(Job).values(kind="ping")


@pytest.fixture(scope="module")
def db(engine: Engine) -> Iterator[Engine]:
    """Yield an engine on this module's tables."""
    with schema_for(Base, engine) as name:
        yield in_schema(engine, name)


@pytest.fixture
def ear(db: Engine) -> Iterator[Ear]:
    """Yield what hears the wake-ups; none is left out for an earlier one."""
    wake.forget_recent()
    ear = Ear(db)
    yield ear
    ear.close()


def test_a_connection_wakes_at_its_commit(db: Engine, ear: Ear) -> None:
    """Once, however often it is called."""
    with db.begin() as connection:
        connection.execute(INSERT)
        notify_runners(connection, Ping)
        notify_runners(connection, Job)
        assert ear.heard() == 0
    assert ear.heard() == 1


def test_a_rollback_wakes_nobody_and_leaves_later_ones(db: Engine, ear: Ear) -> None:
    """What was not committed stands for no other."""
    with db.connect() as connection:
        notify_runners(connection, Job)
        connection.rollback()
        assert ear.heard() == 0
        notify_runners(connection, Job)
        connection.commit()
    assert ear.heard() == 1


def test_in_autocommit_one_stands_for_those_of_a_moment(
    db: Engine, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with sessions; later ones are sent again."""
    monkeypatch.setattr(wake, "COALESCE_SECONDS", 60.0)
    engine = db.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for _ in range(3):
            connection.execute(INSERT)
            notify_runners(connection, Job)
        assert ear.heard() == 1
        monkeypatch.setattr(wake, "COALESCE_SECONDS", 0.0)
        notify_runners(connection, Job)
    assert ear.heard() == 1


def test_a_session_wakes_at_its_commit(db: Engine, ear: Ear) -> None:
    """For INSERTs by a session that `install` does not watch."""
    with Session(db) as session:
        session.execute(INSERT)
        notify_runners(session, Job)
        assert ear.heard() == 0
        session.commit()
    assert ear.heard() == 1


@pytest.mark.usefixtures("ear")
def test_a_prepared_transaction_cannot_notify(db: Engine) -> None:
    """PostgreSQL would refuse it: runners find the job by polling."""
    with db.connect() as connection, connection.begin_twophase() as transaction:
        with executed(db) as seen:
            notify_runners(connection, Job)
        transaction.rollback()
    assert seen == []


@pytest.mark.parametrize("where", [AsyncSession(), None])
def test_anything_else_is_refused(where: Any) -> None:
    """The message says what to do."""
    with pytest.raises(JobValueError, match="run_sync"):
        notify_runners(where, Job)
