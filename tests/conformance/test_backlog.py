"""In a backlog a runner's claim goes on where the last one ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs._core.memory import FROM_THE_HEAD, FROM_THE_HEAD_WOKEN, Memory
from sqla_jobs._core.settle import Settlement
from sqla_jobs._store import plain
from sqla_jobs._store.claim import claim_jobs
from sqla_jobs._store.settle import settle
from sqla_jobs.models import job_tables
from tests.conformance.factories import DAY, LEASE, NOW, Job, change, fill

TABLES = job_tables(Job)
BLOCKS = text(
    "SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class"
    " WHERE relname LIKE 'jobs%'"
)


@dataclass
class Claimer:
    """A runner that claims, at times that the test gives."""

    session: Session
    memory: Memory = field(default_factory=Memory)
    now: float = 100.0

    def claim(
        self, limit: int = 2, queues: Mapping[Any, int] | None = None, **ask: Any
    ) -> list[Any]:
        """Claim, and return the jobs."""
        self.memory.begin()
        return claim_jobs(
            self.session,
            TABLES,
            kinds=["work"],
            queues=queues,
            limit=limit,
            lease=LEASE,
            runner_id=uuid4(),
            memory=self.memory,
            **ask,
        )

    def numbers(self, limit: int = 2, **ask: Any) -> list[int]:
        """Claim, and return which jobs, counted from 1."""
        return [job.id - self.first + 1 for job in self.claim(limit, **ask)]

    def fill(self, count: int, **columns: Any) -> None:
        """Insert jobs; the first one of all is number 1."""
        fill(self.session, count, **columns)
        if not hasattr(self, "first"):
            found = self.session.scalar(text("SELECT min(id) FROM jobs"))
            self.first: int = found or 0


@pytest.fixture
def claimer(
    session: Session, job_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> Claimer:
    """Return a claimer whose jobs are rolled back."""
    schema = job_engine.get_execution_options()["schema_translate_map"][None]
    session.execute(text(f"SET LOCAL search_path TO {schema}"))
    claimer = Claimer(session)
    monkeypatch.setattr(plain, "monotonic", lambda: claimer.now)
    return claimer


@pytest.fixture
def picks(session: Session) -> Iterator[list[str]]:
    """Yield what each claim begins with: "head" or "mark"."""
    connection, seen = session.connection(), list[str]()

    def note(*args: Any) -> None:
        if "lease_token +" in args[2]:
            seen.append("mark" if "after_run_at" in args[2] else "head")

    event.listen(connection, "before_cursor_execute", note)
    yield seen
    event.remove(connection, "before_cursor_execute", note)


def test_full_claims_go_on_and_take_the_same_jobs(
    claimer: Claimer, picks: list[str]
) -> None:
    """Each is one statement; order and completeness are as from the head."""
    claimer.fill(3, priority=5)
    claimer.fill(4)

    found = [claimer.numbers() for _ in range(5)]

    # The second left a slot at the end of the priority.
    assert found == [[1, 2], [3], [4, 5], [6, 7], []]
    assert picks == ["head", "mark", "head", "mark", "mark", "head"]


def test_claim_that_left_slots_is_repeated_at_once(claimer: Claimer) -> None:
    """What the mark hid comes with the next claim; an empty table ends that."""
    claimer.fill(3)
    claimer.claim()
    claimer.fill(1, priority=9)

    assert claimer.numbers() == [3]
    assert claimer.memory.take_again() == 0.0
    assert claimer.memory.unfinished
    assert claimer.numbers() == [4]
    assert claimer.memory.take_again() is None


def test_claim_that_got_less_than_it_asked_for_is_no_backlog(
    claimer: Claimer, picks: list[str]
) -> None:
    """An idle runner claims by one statement."""
    claimer.fill(1)
    claimer.claim()
    claimer.claim()
    claimer.fill(1)
    claimer.claim()

    assert picks == ["head"] * 3


def test_what_comes_before_the_mark_is_found_after_a_second(claimer: Claimer) -> None:
    """A retried, a released or a more urgent job waits no longer than that."""
    claimer.fill(9)
    claimer.claim()
    claimer.fill(1, priority=9)
    change(claimer.session, claimer.first, state="available", run_at=NOW - DAY)
    claimer.now += FROM_THE_HEAD - 0.01
    assert claimer.numbers() == [3, 4]

    claimer.now += 0.02
    assert claimer.numbers() == [10, 1]


def test_notification_brings_the_look_at_the_head_forward(claimer: Claimer) -> None:
    """Once somebody has enqueued, what is urgent waits a tenth of a second."""
    claimer.fill(9)
    claimer.claim()
    claimer.fill(1, priority=9)
    claimer.memory.woke()
    claimer.now += FROM_THE_HEAD_WOKEN - 0.01
    assert claimer.numbers() == [3, 4]

    claimer.now += 0.02
    assert claimer.numbers() == [10, 5]
    claimer.fill(1, priority=9)
    claimer.now += FROM_THE_HEAD_WOKEN
    assert claimer.numbers() == [6, 7]


def test_each_queue_has_a_place_of_its_own(claimer: Claimer, picks: list[str]) -> None:
    """A queue that was not claimed from yet is claimed from its head."""
    claimer.fill(4, queue="a")
    claimer.fill(4, queue="b")
    only_a, both = {"a": 1}, {"a": 1, "b": 1}

    assert claimer.numbers(1, queues=only_a) == [1]
    assert sorted(claimer.numbers(queues=both)) == [2, 5]
    assert sorted(claimer.numbers(queues=both)) == [3, 6]
    assert claimer.numbers(1, queues={"a": 0, "b": 1}) == [7]
    assert picks == ["head", "head", "mark", "mark"]


def test_no_more_than_the_slots_of_a_queue(claimer: Claimer) -> None:
    """What goes on keeps to the slots as what begins at the head does."""
    claimer.fill(9, queue="a")
    claimer.fill(9, queue="b")
    slots = {"a": 1, "b": 3}

    for _ in range(3):
        found = [job.queue for job in claimer.claim(4, queues=slots)]
        assert sorted(found) == ["a", "b", "b", "b"]


def test_paused_queue_and_suspects_are_left_alone(claimer: Claimer) -> None:
    """The place changes where a claim begins, and nothing else."""
    claimer.fill(2)
    claimer.fill(3, crashes=2)
    claimer.fill(3)
    claimer.claim()

    assert claimer.numbers(suspects=False) == [6, 7]
    claimer.session.execute(
        text("INSERT INTO jobs_queues (name, paused) VALUES ('default', true)")
    )
    assert claimer.claim() == []


def test_claims_under_a_held_snapshot_read_few_blocks(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done stays in the index until the snapshot ends; who reads it, once."""
    with sessions.begin() as session:
        fill(session, 6_000)
        session.execute(text("ANALYZE"))
    with sessions() as holder:
        holder.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        holder.scalar(text("SELECT 1"))
        claimer = Claimer(holder)
        monkeypatch.setattr(plain, "monotonic", lambda: claimer.now)
        for _ in range(10):
            with sessions.begin() as session:
                claimer.session = session
                jobs = claimer.claim(400)
                rows = [Settlement(j.id, j.lease_token, "complete") for j in jobs]
                settle(session, TABLES, rows)
        read = []
        for _ in range(4):
            with sessions.begin() as session:
                claimer.session = session
                before = session.scalar(BLOCKS)
                assert len(claimer.claim(10)) == 10
                read.append(session.scalar(BLOCKS) - before)
            if len(read) == 3:
                claimer.now += FROM_THE_HEAD

    *following, from_head = read
    assert max(following) <= 150
    assert from_head > 3 * max(following)
