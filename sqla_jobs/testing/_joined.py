"""Sessions and attempts inside a test's transaction: savepoints instead of commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_jobs._dialects import JobDialect, dialect_of
from sqla_jobs._store.probe import is_aborted
from sqla_jobs._store.times import CLOCK
from sqla_jobs.errors import JobValueError, UnsupportedDialect
from sqla_jobs.models import JobMixin, JobTables, job_tables
from sqla_jobs.runner.attempt import Attempt
from sqla_jobs.runner.guard import Guard
from sqla_jobs.runner.sessions import _attach, fenced_class
from sqla_jobs.testing._clock import ManualClock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

T = TypeVar("T")
USED = "sqla_jobs.tables"
"""In Session.info: the job tables that the session added to."""


@event.listens_for(Session, "before_flush")
def _note_tables(session: Session, *_: Any) -> None:
    new = {job_tables(obj) for obj in session.new if isinstance(obj, JobMixin)}
    if new:
        session.info.setdefault(USED, set()).update(new)


def plain_session(session: Any, verb: str) -> Session | AsyncSession:
    """
    Return the Session or AsyncSession that *session* is or stands for.

    Raises:
        JobValueError: If it is neither.
    """
    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session):
        return session
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    if isinstance(session, async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        return session
    raise JobValueError(
        f"{verb}() needs the test's Session or AsyncSession, got {session!r}"
    )


class JoinedAttempt(Attempt):
    """An attempt whose COMMIT is the release of its session's savepoint."""

    commits = False
    clock: ManualClock | None = None
    connection: Connection
    error: BaseException | None = None  # what the handler raised
    refusal: JobValueError | None = None  # it went for the test's own transaction
    _outer: frozenset[str] = frozenset()  # the savepoints of the test
    _name = ""  # of the savepoint that stands for the session's transaction

    def now(self) -> datetime | None:
        """Return the test's time; None is the database's clock."""
        if self.clock is None:
            return None
        return self.clock.tell(self.connection, self.tables)

    def on_begin(self, connection: Connection) -> None:
        """Note the savepoint that stands for the session's transaction."""
        self.check_open()
        self.began = True
        # Also called for a savepoint of the session's own, which is inside.
        inner = [name for name in _savepoints(connection) if name not in self._outer]
        self._name = inner[-1]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Write the fence with each release; let nothing really commit."""
        self._outer = frozenset(_savepoints(self.connection))
        watched: dict[str, Callable[..., Any]] = {
            "release_savepoint": self._on_release,
            "rollback_savepoint": self._on_rollback_to,
            "commit": self._on_end,
            "rollback": self._note_end,
        }
        for name, listener in watched.items():
            event.listen(self.connection, name, listener)
        try:
            yield
        finally:
            for name, listener in watched.items():
                event.remove(self.connection, name, listener)

    def _on_release(self, connection: Connection, name: str, _: Any) -> None:
        if name in self._outer:
            raise self._note_end(connection)
        if name == self._name:
            self.on_commit(connection)

    def _on_rollback_to(self, connection: Connection, name: str, _: Any) -> None:
        if name in self._outer:
            self._note_end(connection)

    def _on_end(self, connection: Connection) -> NoReturn:
        super()._take_back(connection)
        raise self._note_end(connection)

    def _note_end(self, _: Connection) -> JobValueError:
        # Raised by the helper: the handler may hide what is raised here.
        self.refusal = JobValueError(
            f"the handler of job {self.job_id} would commit or roll back the test's own"
            " transaction; let it use ctx.session: not that session's connection, nor"
            " the session of the test"
        )
        return self.refusal

    def _take_back(self, connection: Connection) -> None:
        connection.dialect.do_rollback_to_savepoint(connection, self._name)


def _savepoints(connection: Connection) -> list[str]:
    """Return the names of the savepoints that are open, the innermost first."""
    names = []
    nested: Any = connection.get_nested_transaction()
    while nested is not None:
        names.append(nested._savepoint)
        nested = nested._previous_nested
    return names


class Joint:
    """The test's session as the database of a runner: it has one connection."""

    def __init__(
        self, outer: Session, tables: JobTables, clock: ManualClock | None, verb: str
    ) -> None:
        self.outer, self.tables, self.verb = outer, tables, verb
        self.clock: ManualClock | None = clock or outer.info.get(CLOCK)
        with self.explaining():
            self.connection = outer.connection(
                bind_arguments={"mapper": tables.root.__mapper__}
            )
            self.dialect: JobDialect = self._supported()
            self._refuse_autocommit()
            with self.connection.begin_nested():
                pass  # would fail if the transaction had
            outer.flush()

    def _supported(self) -> JobDialect:
        try:
            return dialect_of(self.connection)
        except UnsupportedDialect as exc:
            raise UnsupportedDialect(
                f"{exc}; for tests there is sqla_jobs.testing.PostgresServer, and the"
                " pytest plugin with the fixture sqla_jobs_dsn"
            ) from None

    def _refuse_autocommit(self) -> None:
        dbapi: Any = self.connection.connection.dbapi_connection
        if self.connection.dialect.detect_autocommit_setting(dbapi):
            raise JobValueError(
                f"{self.verb}() needs a session in a transaction, this one is in"
                " AUTOCOMMIT mode: what it writes could not be rolled back"
            )

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """
        Say what is the matter when the transaction has failed before.

        Raises:
            JobValueError: If so.
        """
        try:
            yield
        except (PendingRollbackError, DBAPIError) as exc:
            if isinstance(exc, DBAPIError) and not is_aborted(exc):
                raise
            raise JobValueError(
                f"{self.verb}() needs a working transaction, but an earlier statement"
                " of it failed; call session.rollback() first, or run what may fail"
                " in `with session.begin_nested():`"
            ) from exc

    def now(self) -> datetime | None:
        """Return the test's time; None is the database's clock."""
        clock = self.clock
        return None if clock is None else clock.tell(self.connection, self.tables)

    def run(self, work: Callable[[Session], T]) -> T:
        """
        Run *work* in a savepoint, as a runner does in a transaction of its own.

        Raises:
            JobValueError: If the test's transaction has ended.
        """
        if not self.connection.in_transaction():  # else this would really commit
            raise JobValueError(f"{self.verb}(): the test's transaction has ended")
        with Session(
            self.connection,
            join_transaction_mode="create_savepoint",
            expire_on_commit=False,
        ) as session:
            result = work(session)
            session.commit()
            return result

    def attempt(self, attempt: JoinedAttempt) -> JoinedAttempt:
        """Give *attempt* the connection and the time."""
        attempt.connection, attempt.clock = self.connection, self.clock
        return attempt

    def opener(self, maker: sessionmaker[Any] | None) -> Callable[[Guard], Session]:
        """Return what opens a handler's session, by *maker* or like the test's own."""
        base, options = type(self.outer), {}
        if maker is not None:
            base, options = maker.class_, maker.kw
        cls = self._handler_class(base, maker is None)

        def open_session(guard: Guard) -> Session:
            return _attach(cls(**options), guard)

        return open_session

    def async_opener(
        self, outer: AsyncSession | None, maker: Any
    ) -> Callable[[Guard], AsyncSession]:
        """Return what opens the AsyncSession of a handler."""
        options: dict[str, Any] = {}
        cls: Any = type(outer)
        base = type(self.outer)
        if maker is not None:
            cls, options = maker.class_, dict(maker.kw)
            base = options.get("sync_session_class") or cls.sync_session_class
        # An expired attribute cannot be loaded without an await.
        options |= {
            "sync_session_class": self._handler_class(base, maker is None, expire=False)
        }

        def open_session(guard: Guard) -> AsyncSession:
            session: AsyncSession = cls(**options)
            _attach(session.sync_session, guard)
            return session

        return open_session

    def _handler_class(
        self, base: type[Session], alike: bool, *, expire: bool = True
    ) -> type[Session]:
        joined = _joined_class(base, self.outer, alike=alike)

        def prepare(session: Session, _: Any = None) -> None:
            if not expire:
                session.expire_on_commit = False
            # What handlers enqueue is known to the test's session.
            session.info[USED] = self.outer.info.setdefault(USED, set())
            if self.clock is not None:
                session.info[CLOCK] = self.clock

        joined._prepare = staticmethod(prepare)  # type: ignore[attr-defined]
        return fenced_class(joined, self.connection.engine)


def _joined_class(base: type[Session], outer: Session, *, alike: bool) -> type[Session]:
    """Return a subclass whose sessions are inside the transactions of *outer*."""

    class Joined(base):  # type: ignore[valid-type,misc]
        _prepare: Any

        def __init__(self, **options: Any) -> None:
            # Where it connects is up to the test's session.
            options |= dict.fromkeys(("bind", "binds"))
            options |= {"join_transaction_mode": "create_savepoint", "twophase": False}
            if alike:
                Session.__init__(self, **options)
                _copy(outer, self)
            else:
                super().__init__(**options)
            self._prepare(self)

        def get_bind(self, mapper: Any = None, **arguments: Any) -> Connection:
            bind = arguments.get("bind")
            if isinstance(bind, Connection):
                return bind
            arguments["mapper"] = mapper
            return outer.connection(bind_arguments=arguments)

    Joined.__name__ = base.__name__
    return Joined


_OPTIONS = (
    "autobegin", "autoflush", "enable_baked_queries", "execution_options",
    "expire_on_commit", "_query_cls",
)  # fmt: skip


def _copy(outer: Session, inner: Session) -> None:
    """Give *inner* the options of *outer*, and what its class has added to it."""
    ours = vars(inner)
    for name, value in vars(outer).items():
        if name in _OPTIONS or name not in {*ours, "dispatch", "info"}:
            ours[name] = value
    own = {k: v for k, v in outer.info.items() if not str(k).startswith("sqla_jobs.")}
    inner.info.update(own)
