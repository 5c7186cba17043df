"""Plain claims and sweeps: statements that commit themselves on a kept connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from sqla_jobs.runner.control import CONFLICT_RETRIES, Control, Limits
from sqla_jobs.runner.upkeep import Swept
from tests.runner.harness import Kit, Loaded, Plain, Task
from tests.runner.test_limited import limit

PID = select(func.pg_backend_pid())
END_MYSELF = select(func.pg_terminate_backend(func.pg_backend_pid()))


@pytest.fixture
def control(engine: Engine) -> Iterator[Control]:
    """Yield the connections of a runner."""
    control = Control(engine, Limits(timedelta(seconds=9)))
    yield control
    control.close()


def pid_of(control: Control) -> Any:
    """Return which server process runs a single statement."""
    return control.run(lambda session: session.scalar(PID), single=True)


@pytest.fixture
def table(engine: Engine) -> Iterator[str]:
    """Yield the name of a table with a number."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept_numbers (number int PRIMARY KEY)"))
    yield "kept_numbers"
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE kept_numbers"))


def insert(number: int) -> Any:
    """Return work that inserts a number."""
    stmt = text("INSERT INTO kept_numbers VALUES (:number)")
    return lambda session: session.execute(stmt, {"number": number})


@pytest.mark.direct("a pooler's connection is never kept")
def test_single_statement_commits_by_itself(
    control: Control, engine: Engine, table: str
) -> None:
    """Others see it at once, and the connection is neither given back nor waiting."""
    control.run(insert(1), single=True)

    state = "SELECT state, query FROM pg_stat_activity WHERE pid = :pid"
    with engine.connect() as other:
        assert other.scalar(text(f"SELECT sum(number) FROM {table}")) == 1
        found = other.execute(text(state), {"pid": (pid := pid_of(control))}).one()
    assert found.state == "idle"
    assert pid_of(control) == pid


@pytest.mark.direct("a pooler's connection is never kept")
def test_connection_of_a_failed_statement_is_replaced(
    control: Control, table: str
) -> None:
    """The error is the statement's own; the next one has a new connection."""
    before = pid_of(control)
    control.run(insert(1), single=True)

    with pytest.raises(DBAPIError, match="kept_numbers_pkey"):
        control.run(insert(1), single=True)

    assert pid_of(control) != before
    control.run(insert(2), single=True)


@pytest.mark.direct("a pooler's connection is never kept")
def test_connection_that_others_make_doubtful_is_replaced(
    control: Control, engine: Engine
) -> None:
    """Where the server ended one, it has ended all: that is one outage, not two."""
    before = pid_of(control)
    with pytest.raises(DBAPIError):
        control.run(lambda session: session.execute(END_MYSELF))
    with engine.begin() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": before})

    assert pid_of(control) != before


@pytest.mark.direct("a pooler's connection is never kept")
def test_refused_connection_makes_the_kept_one_doubtful(
    control: Control,
) -> None:
    """A database that lets nobody in has thrown out those who were in."""
    before = pid_of(control)

    def refuse() -> Any:
        raise OperationalError("", None, psycopg.OperationalError("refused"))

    with pytest.raises(DBAPIError):
        control.run(lambda session: refuse())

    assert pid_of(control) != before


def test_conflict_of_a_single_statement_is_tried_again(control: Control) -> None:
    """As in a transaction: the statement did nothing."""
    tries = []

    def work(session: Session) -> None:
        tries.append(0)
        if len(tries) < CONFLICT_RETRIES:
            raise_conflict = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"
            session.execute(text(raise_conflict))

    control.run(work, single=True)

    assert len(tries) == CONFLICT_RETRIES


@pytest.mark.direct("a pooler's connection is never kept")
def test_kept_connection_is_not_at_work_between_its_statements(engine: Engine) -> None:
    """What hangs up on a server that is too long about its answer lets it be."""
    limits = Limits(timedelta(seconds=9))
    control = Control(engine, limits)

    def hung_up(session: Session) -> None:
        limits.hang_up(older_than=-1.0)
        session.execute(PID)

    try:
        before = pid_of(control)
        limits.hang_up(older_than=-1.0)
        assert pid_of(control) == before

        with pytest.raises(DBAPIError):
            control.run(hung_up, single=True)
    finally:
        control.close()


def at_once(control: Control, count: int) -> list[tuple[int, str]]:
    """Return server process and isolation of single statements inside each other."""

    def work(session: Session) -> list[tuple[int, str]]:
        connection = session.connection()
        pid = connection.scalar(PID)
        level = connection.get_execution_options()["isolation_level"]
        inner = at_once(control, count - 1)
        return [(pid or 0, level), *inner]

    return control.run(work, single=True) if count else []


@pytest.mark.direct("a pooler's connection is never kept")
def test_two_at_once_have_a_connection_each_and_a_third_a_transaction(
    control: Control,
) -> None:
    """Claims do not wait for outcomes; one alone uses one connection."""
    found = at_once(control, 3)

    assert [level for _, level in found] == ["AUTOCOMMIT"] * 2 + ["READ COMMITTED"]
    assert len({pid for pid, _ in found}) == 3
    assert at_once(control, 2) == found[:2]
    assert {pid_of(control) for _ in range(3)} == {found[0][0]}


@pytest.mark.direct("a pooler's connection is never kept")
def test_outage_of_a_kept_connection_makes_the_other_doubtful(control: Control) -> None:
    """It too is probably broken, and would cost another error."""
    before = {pid for pid, _ in at_once(control, 2)}

    with pytest.raises(DBAPIError):
        control.run(lambda session: session.execute(END_MYSELF), single=True)

    assert before.isdisjoint(pid for pid, _ in at_once(control, 2))


@pytest.mark.direct("a pooler's server processes are anybody's")
def test_closed_control_keeps_nothing(engine: Engine) -> None:
    """After `close` no server process is left."""
    control = Control(engine)
    found = at_once(control, 2)
    pool = control.engine.pool
    control.close()

    assert pool.checkedout() == 0  # type: ignore[attr-defined]
    assert pid_of(control) not in dict(found)
    control.close()


# Which claims are single statements


async def nothing(job: Any, ctx: Any) -> None:
    """Do nothing."""


def noted(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Any], bool]) -> list[bool]:
    """Return a list that gets, for each *wanted* answer, whether it was single."""
    once, found = Control.once, list[bool]()

    def note(control: Control, work: Any, *, single: bool) -> Any:
        result = once(control, work, single=single)
        if wanted(result):
            found.append(single)
        return result

    monkeypatch.setattr(Control, "once", note)
    return found


def is_claim(result: Any) -> bool:
    """Return whether it is when a claim was sent, and the jobs that it found."""
    match result:
        case (float(), [_, *_]):
            return True
    return False


def singles(kit: Kit, monkeypatch: pytest.MonkeyPatch, **options: Any) -> set[bool]:
    """Run what is due; return whether claims that found something were single."""
    found = noted(monkeypatch, is_claim)
    kit.drain(**options)
    return set(found)


def test_claim_of_plain_jobs_is_a_single_statement(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is done in its transaction, so it needs none."""
    kit.handle(nothing)
    kit.add(Task(), Task())

    assert singles(kit, monkeypatch) == {True}
    assert kit.states() == ["completed", "completed"]


def test_claim_that_loads_relationships_is_a_transaction(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the second statement fails, the first must not have happened."""
    kit.handle(nothing, Loaded)
    kit.add(Loaded())

    assert singles(kit, monkeypatch) == {False}


def test_outcomes_are_single_statements(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good or bad: what is missing in the answer is only looked at afterwards."""
    found = noted(monkeypatch, lambda result: isinstance(result, dict))

    async def fail(job: Any, ctx: Any) -> None:
        raise ValueError

    kit.handle(fail, Plain)
    kit.handle(nothing)
    kit.add(Task(), Plain(max_attempts=1))
    kit.drain()

    assert sorted(kit.states()) == ["completed", "discarded"]
    assert found
    assert all(found)


def test_claim_of_managed_queues_is_a_transaction(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are counted under a lock that is held until the jobs are leased."""
    kit.handle(nothing)
    limit(kit, "default", max_running=2)
    kit.add(Task(), Task())

    assert singles(kit, monkeypatch) == {False}


def test_claim_of_ordered_jobs_is_a_transaction(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain jobs and heads of channels are claimed by several statements."""
    kit.handle(nothing)
    kit.add(Task(ordered=True, channel="a"), Task())

    assert singles(kit, monkeypatch) == {False}


def test_claims_that_go_on_where_the_last_one_ended_are_single_statements(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is looked at by the next claim: no answer can be lost between two."""
    kit.handle(nothing)
    kit.add(*(Task() for _ in range(5)), *(Task(priority=9) for _ in range(3)))

    assert singles(kit, monkeypatch, concurrency=2) == {True}
    assert set(kit.states()) == {"completed"}


def test_sweeps_need_a_transaction_only_for_more_than_looking(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To take back and to stage are two statements; the sign of life comes at first."""
    sweeps = noted(monkeypatch, lambda result: isinstance(result, Swept))
    kit.handle(nothing)
    running = kit.run(poll=timedelta(milliseconds=20))
    kit.until(lambda: len(sweeps) > 5)
    running.stop()

    assert sweeps[:2] == [True, False]
    assert all(sweeps[2:])
