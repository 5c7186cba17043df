"""
Random calls of the public API, each beside what the oracle says of it.

A call commits by itself, or belongs to a transaction that a later rule commits or rolls
back. Claims are used for ever: also when their jobs are long lost, settled or deleted.

Rules draw numbers, which choose among the jobs and claims that a call fits, or now and
then among all there ever were: bundles would nearly always draw what is long over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import ClassVar

import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
)
from sqlalchemy import Engine, delete, func, select
from sqlalchemy.orm import Session

from sqla_jobs import Claim, LeaseLost
from sqla_jobs._store.heads import _shared_memory
from sqla_jobs.testing import ManualClock
from tests.model.oracle import Oracle, Row
from tests.model.shapes import SECOND, START, Job


class Transactions(RuleBasedStateMachine):
    """The jobs of one table, their claims, and the oracle beside them."""

    engine: ClassVar[Engine]
    runs: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.oracle, self.before = Oracle(), Oracle()
        self.now = START
        self.clock = ManualClock()
        self.numbers, self.transactions = count(1), 0
        self.session: Session | None = None
        self.known: list[int] = []
        self.handed: dict[int, Claim] = {}

    def empty(self) -> None:
        """Begin with empty tables, and let chance repeat itself when a run does."""
        Transactions.runs += 1
        self.clock.set(self.now)
        _shared_memory.cache_clear()
        with self.engine.begin() as connection:
            connection.execute(select(func.setseed(0.5)))
            for table in reversed(Job.metadata.sorted_tables):
                connection.execute(delete(table))

    def teardown(self) -> None:
        """Leave no transaction open."""
        if self.session is not None:
            self.session.close()

    # Transactions

    def _opened(self) -> Session:
        self.transactions += 1
        session = Session(self.engine)
        session.info["sqla_jobs.clock"] = self.clock
        return session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Yield the open session, or one that commits at the end."""
        if self.session is not None:
            yield self.session
        else:
            with self._opened() as session:
                yield session
                session.commit()

    @contextmanager
    def lost(self) -> Iterator[None]:
        """Expect that the lease is lost, and with it the whole transaction."""
        with pytest.raises(LeaseLost):
            yield
        if self.session is not None:
            self.oracle = self.before.copied()
            self.transactions += 1

    @precondition(lambda self: self.session is None)
    @rule()
    def begin(self) -> None:
        """Let the next calls share a transaction."""
        self.session, self.before = self._opened(), self.oracle.copied()

    @precondition(lambda self: self.session is not None)
    @rule()
    def commit(self) -> None:
        """Commit the calls since `begin`."""
        self._end().commit()

    @precondition(lambda self: self.session is not None)
    @rule()
    def roll_back(self) -> None:
        """Undo the calls since `begin`: what they made never existed."""
        self._end().rollback()
        self.oracle = self.before

    def _end(self) -> Session:
        session, self.session = self.session, None
        assert session is not None
        return session

    def let_pass(self, seconds: int) -> None:
        """Let time pass."""
        self.now += seconds * SECOND
        self.clock.set(self.now)

    # Choose

    def choose(self, picks: list[int], fits: Callable[[Row], bool]) -> list[int]:
        """Return ids: most of jobs that fit, others of any, also of unknown ones."""
        fit = sorted(row.id for row in self.oracle.rows.values() if fits(row))
        pools = [self.known if pick % 4 == 3 or not fit else fit for pick in picks]
        pairs = zip(picks, pools, strict=True)
        return sorted({pool[pick // 4 % len(pool)] for pick, pool in pairs})

    def choose_claim(self, pick: int) -> int:
        """Return the number of a claim: half are held, others late, or of any age."""
        running = {r.id: r.holder for r in self.oracle.rows.values() if r.holder}
        known = sorted(self.oracle.claims)
        held = sorted(running.values())
        late = [n for n in known if running.get(self.handed[n].job_id, n) != n]
        pools = (held, held, late, known)
        pool = pools[pick % 4] or known
        return pool[pick // 4 % len(pool)]
