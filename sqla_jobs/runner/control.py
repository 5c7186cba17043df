"""The runner's own few connections, apart from the pool its handlers use."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from sqla_jobs._dialects import JobDialect, dialect_of, sockets
from sqla_jobs._notify.connect import SHARED
from sqla_jobs._store.claim import DEFAULT_LEASE
from sqla_jobs.errors import JobValueError
from sqla_jobs.runner.guard import COMMIT_SECONDS

log = logging.getLogger("sqla_jobs")
T = TypeVar("T")
CONFLICT_RETRIES = 10
CONTROL_CONNECTIONS = 3
KEPT = 2  # of them: claims and outcomes are sent at the same time


class Limits:
    """How long connections of a runner may be silent, and which of them are at work."""

    def __init__(self, lease: timedelta = DEFAULT_LEASE) -> None:
        self.lease = lease
        self._busy: dict[int, tuple[float, Any]] = {}
        self._engines: WeakSet[Engine] = WeakSet()

    @property
    def statement(self) -> timedelta:
        """The longest statement."""
        return min(max(2 * self.lease, timedelta(seconds=10)), timedelta(minutes=5))

    @property
    def silence(self) -> timedelta:
        """The longest silence in a transaction: its locks must not outlast a lease."""
        return min(self.lease, timedelta(seconds=COMMIT_SECONDS))

    @property
    def transaction(self) -> timedelta:
        """The longest transaction; then the server is taken for dead."""
        return 2 * self.statement

    @property
    def network_seconds(self) -> float:
        """Seconds for which the network may swallow everything."""
        return max(2.0, min(10.0, self.lease.total_seconds() / 3))

    def hang_up(self, older_than: float) -> None:
        """End connections that have been at work for more than *older_than* seconds."""
        now = time.monotonic()
        for key, (since, raw) in list(self._busy.items()):
            if now - since > older_than and self._busy.pop(key, None) is not None:
                log.warning(
                    "no answer for %.0f s: a connection is given up", now - since
                )
                sockets.hang_up(raw)

    def begin_child(self) -> None:
        """Forget all connections in a fork of the process; they are the parent's."""
        self._busy.clear()
        for engine in self._engines:
            engine.dispose(close=False)

    def begins(self, info: Any, raw: Any) -> None:
        """Note that the connection with that *info* is at work."""
        self._busy[id(info)] = time.monotonic(), raw

    def ends(self, info: Any) -> None:
        """Note that it may be silent."""
        self._busy.pop(id(info), None)

    def watch(self, own: Engine, theirs: Engine) -> None:
        """Note which connections of the engine *own* are at work."""
        self._engines.update((own, theirs))
        pool = own.pool

        def begins(_: Any, record: Any, __: Any) -> None:
            self.begins(record.info, record.driver_connection)

        def ends(_: Any, record: Any) -> None:
            self.ends(record.info)

        event.listen(pool, "checkout", begins)
        event.listen(pool, "checkin", ends)
        event.listen(pool, "detach", ends)  # a listener's, which waits for hours


def clone_engine(
    engine: Engine, limits: Limits | None = None, *, size: int = CONTROL_CONNECTIONS
) -> Engine:
    """
    Return an engine with the same creator, connect arguments and pool events, and a
    small pool of its own: a handler that waits for the user's pool must not stop the
    heartbeat. Its connections keep to *limits*.
    """
    limits = limits or Limits()
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
    drop_pool_of_standby(engine)
    limits.watch(clone, engine)
    _limit_connections(clone, dialect_of(engine), limits)
    return clone.execution_options(isolation_level="READ COMMITTED")


def _limit_connections(engine: Engine, dialect: JobDialect, limits: Limits) -> None:
    def connected(connection: Any, record: Any) -> None:
        raw = record.driver_connection
        sockets.fail_when_silent(raw, limits.network_seconds)
        if not dialect.limit_session(
            connection, raw, limits.statement, silence=limits.silence
        ):
            record.info[SHARED] = True
            # Not before: whatever listens to an engine costs time at each statement.
            if not event.contains(engine, "begin", begun):
                event.listen(engine, "begin", begun)

    def begun(connection: Connection) -> None:
        if SHARED in connection.info:
            own = connection.connection.dbapi_connection
            try:
                dialect.limit_transaction(own, limits.statement, silence=limits.silence)
            except Exception as exc:
                raise _untranslated(connection, exc) from exc

    event.listen(engine.pool, "connect", connected)


def _untranslated(connection: Connection, exc: Exception) -> DBAPIError:
    # Below SQLAlchemy: nobody else translates it, or drops the connection.
    connection.invalidate(exc)
    why = "the connection broke at its first statement"
    return DBAPIError(why, None, exc, connection_invalidated=True)


def drop_pool_of_standby(engine: Engine) -> None:
    """
    Let *engine* drop its whole pool when the server refuses to write.

    After a failover its connections may all lead to what was the primary, alive and
    well; new ones lead to wherever the application's URL or name points by then.
    """
    if not event.contains(engine, "handle_error", _is_away_if_demoted):
        event.listen(engine, "handle_error", _is_away_if_demoted)


def _is_away_if_demoted(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is None:
        return  # none was made
    if dialect_of(connection).is_demoted(context.original_exception):
        context.is_disconnect = True


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


class Kept:
    """
    A session that is kept, for what a runner sends all the time and what needs no
    transaction around it: claims, outcomes, sweeps.

    To check a connection out, begin, plan, commit and give it back takes longer than
    such a statement does. One statement at a time.
    """

    def __init__(self, engine: Engine, dialect: JobDialect, limits: Limits) -> None:
        self._engine, self._dialect, self._limits = engine, dialect, limits
        self._session: Session | None = None
        self._shared = self._doubtful = False

    def doubt(self) -> None:
        """Note that another connection broke: this one is probably no better."""
        self._doubtful = True

    def open(self) -> bool:
        """Make its connection; return False where a pooler gives it to others too."""
        if self._doubtful:
            self.close()
        if self._session is not None or self._shared:
            return not self._shared
        connection = self._engine.connect()
        if SHARED in connection.info:  # it has its limits in a transaction only
            self._shared = True
            connection.close()
            return False
        # Not an option of the engine: the isolation level it has would come after that.
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        self._session = Session(connection, expire_on_commit=False)
        self.run(self._begin)
        return True

    def _begin(self, session: Session) -> None:
        own = session.connection().connection.dbapi_connection
        try:
            self._dialect.begin_claims(own)
        except Exception as exc:
            raise _untranslated(session.connection(), exc) from exc

    def run(self, work: Callable[[Session], T]) -> T:
        """Run *work* in it; what it sends commits by itself."""
        assert self._session is not None
        connection = self._session.connection()
        raw, info = connection.connection.driver_connection, connection.info
        self._limits.begins(info, raw)
        try:
            return work(self._session)
        except BaseException:
            self.close()
            raise
        finally:
            self._limits.ends(info)

    def close(self) -> None:
        """Close its connection: as it is, it is of no use to others."""
        session, self._session, self._doubtful = self._session, None, False
        if session is not None:
            connection = session.get_bind()
            assert isinstance(connection, Connection)
            connection.invalidate()
            session.close()
            connection.close()


class Control:
    """Short transactions on connections of the runner's own."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.engine = clone_engine(engine, limits)
        self.dialect = dialect_of(self.engine)
        self._kept = [Kept(self.engine, self.dialect, limits) for _ in range(KEPT)]
        self._free = deque(self._kept)

    def run(self, work: Callable[[Session], T], *, single: bool = False) -> T:
        """
        Run *work* in one transaction; conflicts are retried in place.

        Args:
            single: Whether what it sends may commit statement by statement.
        """
        for attempt in range(CONFLICT_RETRIES):
            try:
                return self.once(work, single=single)
            except DBAPIError as exc:
                if not self.dialect.is_conflict(exc) or attempt + 1 == CONFLICT_RETRIES:
                    raise
                time.sleep(conflict_pause(attempt))
        raise AssertionError  # pragma: no cover

    def once(self, work: Callable[[Session], T], *, single: bool) -> T:
        """Run *work* without another try."""
        try:
            with self._keeping(single=single) as kept:
                return self._transaction(work) if kept is None else kept.run(work)
        except Exception as exc:
            if self.dialect.is_outage(exc):
                for kept in self._kept:
                    kept.doubt()
            raise

    @contextmanager
    def _keeping(self, *, single: bool) -> Iterator[Kept | None]:
        """Yield a kept session that nobody uses, the last one used first; or None."""
        try:
            kept = self._free.pop() if single else None
        except IndexError:
            kept = None
        try:
            yield kept if kept is not None and kept.open() else None
        finally:
            if kept is not None:
                self._free.append(kept)

    def _transaction(self, work: Callable[[Session], T]) -> T:
        with Session(self.engine, expire_on_commit=False) as session:
            result = work(session)
            session.commit()
            return result

    def close(self) -> None:
        """Close the connections."""
        for kept in self._kept:
            kept.close()
        self.engine.dispose()


def timed(work: Callable[[Session], T]) -> Callable[[Session], tuple[float, T]]:
    """
    Return *work* that also returns the monotonic time at which it was sent.

    A lease is counted from then, and not from before: the connection may have to be
    made first, which takes minutes while the network is away.
    """

    def run(session: Session) -> tuple[float, T]:
        session.connection()
        return time.monotonic(), work(session)

    return run


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
