"""Handler sessions: the user's own sessionmaker, with the fence on every commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, event, inspect
from sqlalchemy.orm import Mapper, Session, scoped_session, sessionmaker

from sqla_jobs.errors import JobValueError
from sqla_jobs.runner.control import bind_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    from sqla_jobs.runner.guard import Guard

_KEY = "sqla_jobs.attempt"


class _Fenced:
    """Added before the user's session class: a checkpoint may end the attempt."""

    def commit(self) -> None:
        """Commit; raise AttemptInterrupted if the attempt ends with this checkpoint."""
        super().commit()  # type: ignore[misc]
        guard: Guard = self.info[_KEY]  # type: ignore[attr-defined]
        if not guard.ending:
            guard.check_open()


def fenced_class(base: type[Session], engine: Engine) -> type[Session]:
    """Return a subclass of *base* whose commits carry the fence of their attempt."""
    fenced: type[Session] = type(f"Handler{base.__name__}", (_Fenced, base), {})

    def after_begin(session: Session, _: Any, connection: Connection) -> None:
        guard: Guard = session.info[_KEY]
        if connection.engine.pool is engine.pool:
            guard.on_begin(connection)
        else:
            guard.check_open()

    def before_flush(session: Session, *_: Any) -> None:
        session.info[_KEY].check_open()

    def after_commit(session: Session) -> None:
        session.info[_KEY].committed()

    event.listen(fenced, "after_begin", after_begin)
    event.listen(fenced, "before_flush", before_flush)
    event.listen(fenced, "after_commit", after_commit)
    return fenced


def engine_of(maker: sessionmaker[Any], root: type[Any]) -> Engine:
    """
    Return the engine that the sessions of *maker* use for the job table.

    Raises:
        JobValueError: If *maker* is no sessionmaker, or not bound to an Engine.
    """
    if not isinstance(maker, sessionmaker):
        scoped = isinstance(maker, scoped_session)
        hint = "; take the one in it, its session_factory" if scoped else ""
        raise JobValueError(
            f"a Runner needs a sqlalchemy.orm.sessionmaker, got {maker!r}{hint}"
        )
    with maker() as session:
        engine = bind_of(session, root)
    if engine.dialect.is_async:
        raise JobValueError(
            f"a Runner needs a sync engine, got {engine!r}; use an AsyncRunner"
        )
    return engine


def async_engine_of(maker: async_sessionmaker[Any], root: type[Any]) -> Engine:
    """
    Return the sync engine that the sessions of *maker* use for the job table.

    Raises:
        JobValueError: If *maker* is no async_sessionmaker, or not bound to an engine.
    """
    from sqlalchemy.ext.asyncio import async_sessionmaker

    if not isinstance(maker, async_sessionmaker):
        raise JobValueError(
            "an AsyncRunner needs a sqlalchemy.ext.asyncio.async_sessionmaker,"
            f" got {maker!r}"
        )
    return bind_of(maker().sync_session, root)


def sync_opener(maker: sessionmaker[Any], engine: Engine) -> Callable[[Guard], Session]:
    """Return a function that opens the session of an attempt, its job attached."""
    fenced = fenced_class(maker.class_, engine)

    def open_session(guard: Guard) -> Session:
        session = fenced(**maker.kw)
        return _attach(session, guard)

    return open_session


def async_opener(
    maker: async_sessionmaker[Any], engine: Engine
) -> Callable[[Guard], AsyncSession]:
    """Return a function that opens the AsyncSession of an attempt, job attached."""
    base = maker.kw.get("sync_session_class") or maker.class_.sync_session_class
    options = maker.kw
    if isinstance(base, sessionmaker):  # any callable that makes Sessions may be given
        options = {**base.kw, **options}
        base = base.class_
    fenced = fenced_class(base, engine)
    # An expired attribute cannot be loaded without an await.
    options = options | {"sync_session_class": fenced, "expire_on_commit": False}

    def open_session(guard: Guard) -> AsyncSession:
        session: AsyncSession = maker.class_(**options)
        _attach(session.sync_session, guard)
        return session

    return open_session


def _attach(session: Session, guard: Guard) -> Session:
    session.info[_KEY] = guard
    guard.session = session
    session.add_all(guard.jobs)
    begun = session.get_transaction()
    if begun is not None:
        begun.close()  # so that `with ctx.session.begin():` works, as on a new session
    return session


def needs_session(job_class: type[Any]) -> bool:
    """Return whether jobs of the class must be attached before the handler runs."""
    known = job_class.__dict__.get("__job_needs_session__")
    if known is None:
        mapper: Mapper[Any] = inspect(job_class)
        deferred = any(one.deferred for one in mapper.column_attrs)
        known = job_class.__job_needs_session__ = bool(mapper.relationships) or deferred
    return bool(known)
