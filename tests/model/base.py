"""
Random calls of the public API, each beside what the oracle says of it.

A call commits by itself, or belongs to a transaction that a later rule commits or rolls
back. Claims are used for ever: also when their jobs are long lost, settled or deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)
from sqlalchemy import Engine, delete
from sqlalchemy.orm import Session

from sqla_jobs import LeaseLost
from sqla_jobs.testing import ManualClock
from tests.model.oracle import Oracle
from tests.model.shapes import SECOND, START, Job


class Transactions(RuleBasedStateMachine):
    """The jobs of one table, their claims, and the oracle beside them."""

    engine: ClassVar[Engine]
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.oracle, self.before = Oracle(), Oracle()
        self.now = START
        self.clock = ManualClock()
        self.numbers, self.transactions = count(1), 0
        self.session: Session | None = None

    @initialize()
    def empty(self) -> None:
        """Begin with empty tables."""
        self.clock.set(self.now)
        with self.engine.begin() as connection:
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
    def use(self) -> Iterator[Session]:
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

    @rule()
    @precondition(lambda self: self.session is None)
    def begin(self) -> None:
        """Let the next calls share a transaction."""
        self.session, self.before = self._opened(), self.oracle.copied()

    @rule()
    @precondition(lambda self: self.session is not None)
    def commit(self) -> None:
        """Commit the calls since `begin`."""
        self._end().commit()

    @rule()
    @precondition(lambda self: self.session is not None)
    def roll_back(self) -> None:
        """Undo the calls since `begin`: what they made never existed."""
        self._end().rollback()
        self.oracle = self.before

    def _end(self) -> Session:
        session, self.session = self.session, None
        assert session is not None
        return session

    @rule(by=st.sampled_from([1, 5, 10, 31, 100, 3600, 7200]))
    def wait(self, by: int) -> None:
        """Let time pass."""
        self.now += by * SECOND
        self.clock.set(self.now)
