"""The application's sessions, sync or async: a transaction for each piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import IntegrityError, SQLAlchemyError, UnboundExecutionError
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from sqla_jobs._core.conceal import conceal
from sqla_jobs._dialects import dialect_of
from sqla_jobs._store.base import naming_missing_tables
from sqla_jobs.errors import JobValueError, SchemaMismatch
from sqla_jobs.http.problems import Refused
from sqla_jobs.models import JobTables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

T = TypeVar("T")
RETRIES = 5


class Gate:
    """
    Runs work on new sessions; conflicts with other transactions are tried again.

    Args:
        session_factory: A sessionmaker, whose sessions are used in threads; or an
            async_sessionmaker.
    """

    def __init__(
        self,
        session_factory: sessionmaker[Any] | async_sessionmaker[Any],
        tables: JobTables,
    ) -> None:
        # By name: sqlalchemy.ext.asyncio may lack what it needs.
        kinds = {base.__name__ for base in type(session_factory).__mro__}
        if not kinds & {"sessionmaker", "async_sessionmaker"}:
            raise JobValueError(
                "create_app needs a sessionmaker or an async_sessionmaker, got"
                f" {session_factory!r}"
            )
        self._factory: Any = session_factory
        self.is_async = "async_sessionmaker" in kinds
        self._tables = tables
        self._dialect = dialect_of(self._bind(tables))

    async def run(self, work: Callable[[Session], T]) -> T:
        """
        Run *work* in a transaction of its own, commit, and return its answer.

        Raises:
            Refused: With 503, 422 or 409, if the database is away or refuses.
        """
        for attempt in range(RETRIES):
            try:
                # A flush of the ORM's tells it in the database's words only.
                with naming_missing_tables(self._tables):
                    if self.is_async:
                        return await self._run_async(work)
                    return await run_in_threadpool(self._run_sync, work)
            except (SQLAlchemyError, OSError) as exc:
                conceal(exc)  # the server logs what is no refusal
                refusal = self._refusal(exc)
                if refusal is not None:
                    raise refusal from exc
                if not self._dialect.is_conflict(exc):
                    raise
            except SchemaMismatch as exc:
                text = "the database is not as the code says; see /readyz"
                raise Refused(503, text, headers={"Retry-After": "10"}) from exc
            await asyncio.sleep(0.01 * 2**attempt)
        raise Refused(503, "too many conflicts", headers={"Retry-After": "1"})

    def _bind(self, tables: JobTables) -> Any:
        made = self._factory()
        session: Session = made.sync_session if self.is_async else made
        try:
            bind = session.get_bind(mapper=tables.root.__mapper__)
        except UnboundExecutionError as exc:
            raise JobValueError(
                f"create_app needs sessions bound to an engine, got {self._factory!r}"
            ) from exc
        if bind.dialect.is_async is not self.is_async:
            raise JobValueError(
                f"the engine {bind!r} needs {'a' if self.is_async else 'an async_'}"
                "sessionmaker"
            )
        return bind

    def _run_sync(self, work: Callable[[Session], T]) -> T:
        with self._factory() as session:
            answer = work(session)
            session.commit()
            return answer

    async def _run_async(self, work: Callable[[Session], T]) -> T:
        session: AsyncSession
        async with self._factory() as session:
            answer = await session.run_sync(work)
            await session.commit()
            return answer

    def _refusal(self, exc: Exception) -> Refused | None:
        if self._dialect.is_outage(exc):
            text = "the database does not answer; try again later"
            return Refused(503, text, headers={"Retry-After": "1"})
        if isinstance(exc, IntegrityError):
            return Refused(409, "another row of the database forbids it")
        if self._dialect.is_refusal(exc):
            return Refused(422, "the database cannot hold one of the values")
        return None
