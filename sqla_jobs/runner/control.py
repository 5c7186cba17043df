"""The runner's own few connections, apart from the pool its handlers use."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from sqla_jobs._dialects import dialect_of
from sqla_jobs.errors import JobValueError

log = logging.getLogger("sqla_jobs")
T = TypeVar("T")
CONFLICT_RETRIES = 10
CONTROL_CONNECTIONS = 3


def clone_engine(engine: Engine, *, size: int = CONTROL_CONNECTIONS) -> Engine:
    """
    Return an engine with the same creator, connect arguments and pool events, and a
    small pool of its own: a handler that waits for the user's pool must not stop the
    heartbeat.
    """
    pool_class = AsyncAdaptedQueuePool if engine.dialect.is_async else QueuePool
    pool = pool_class(
        engine.pool._creator,  # the only way to the connect arguments
        pool_size=size,
        max_overflow=1,
        timeout=30,
        dialect=engine.dialect,
        _dispatch=engine.pool.dispatch,
    )
    clone = Engine(
        pool,
        engine.dialect,
        engine.url,
        execution_options=dict(engine.get_execution_options()),
        hide_parameters=True,
    )
    return clone.execution_options(isolation_level="READ COMMITTED")


def bind_of(session: Session, root: type[Any]) -> Engine:
    """
    Return the engine that *session* uses for the job table.

    Raises:
        JobValueError: If it is bound to a Connection, or not at all.
    """
    try:
        bind: Any = session.get_bind(mapper=root.__mapper__)
    except UnboundExecutionError:
        bind = None
    if not isinstance(bind, Engine):
        raise JobValueError(
            f"a runner needs sessions bound to an Engine, got {bind!r};"
            " it uses several connections at once"
        )
    return bind


class Control:
    """Short transactions on connections of the runner's own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = clone_engine(engine)
        self.dialect = dialect_of(self.engine)

    def run(self, work: Callable[[Session], T]) -> T:
        """Run *work* in one transaction; conflicts are retried in place."""
        for attempt in range(CONFLICT_RETRIES):
            try:
                with Session(self.engine, expire_on_commit=False) as session:
                    result = work(session)
                    session.commit()
                    return result
            except DBAPIError as exc:
                if not self.dialect.is_conflict(exc) or attempt + 1 == CONFLICT_RETRIES:
                    raise
                time.sleep(conflict_pause(attempt))
        raise AssertionError  # pragma: no cover

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()


def conflict_pause(attempt: int) -> float:
    """Return seconds to wait before trying again after a deadlock."""
    return random.random() * 0.01 * 2.0**attempt  # noqa: S311


class Outage:
    """Says once that the database is away and once that it is back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0

    def failed(self, exc: BaseException) -> float:
        """Note a failure; return the seconds to wait before the next try."""
        if not self.failures:
            log.warning(
                "%s: the database does not answer, retrying: %s", self.name, brief(exc)
            )
        self.failures += 1
        pause = min(5.0, 0.1 * 2.0 ** min(self.failures, 10))
        return pause * (0.5 + random.random())  # noqa: S311

    def worked(self) -> None:
        """Note a success."""
        if self.failures:
            log.warning("%s: the database is back", self.name)
            self.failures = 0


def brief(exc: BaseException) -> str:
    """Return the first line of an error, without statement or parameters."""
    orig = exc.orig if isinstance(exc, DBAPIError) and exc.orig else exc
    return f"{type(orig).__name__}: {str(orig).strip().splitlines()[:1]}"
