"""A clock that a test moves."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from sqla_jobs._store.times import CLOCK, read_clock
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables
from sqla_jobs.models.construct import check_time

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    AnySession = (
        Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]
    )


class ManualClock:
    """
    The time by which `run_one` and `drain` go: the database's, until you move it.

    It starts at the database's clock when it is first needed, and goes on with it, so
    that it is never behind rows just written. `advance` leaps ahead; `set` makes it
    stand still.

    Args:
        session: The test's session; the helpers that are given it go by this clock, as
            does ``delay=`` of jobs that are added to it. Default None: only calls with
            ``clock=`` do, and what their handlers enqueue.
    """

    def __init__(self, session: AnySession | None = None) -> None:
        self._base: datetime | None = None
        self._since: float | None = None  # monotonic; None stands still
        self._ahead = timedelta(0)  # of the database's clock, before it was read
        if session is not None:
            session.info[CLOCK] = self

    def now(self) -> datetime:
        """
        Return the time.

        Raises:
            JobValueError: If the clock was neither set nor used yet.
        """
        if self._base is None:
            raise JobValueError(
                "the clock starts when a helper such as run_one() first needs it; to"
                " start it yourself: clock.set(datetime(...))"
            )
        gone = 0.0 if self._since is None else time.monotonic() - self._since
        return self._base + timedelta(seconds=gone)

    def advance(self, by: timedelta) -> None:
        """
        Leap ahead.

        Raises:
            JobValueError: If *by* is no timedelta of zero or more.
        """
        given: object = by
        if not isinstance(given, timedelta) or given < timedelta(0):
            raise JobValueError(
                f"advance({by!r}) needs a timedelta of zero or more, e.g."
                " timedelta(hours=1)"
            )
        if self._base is None:
            self._ahead += by
        else:
            self._base += by

    def set(self, to: datetime) -> None:
        """
        Make it *to*, where it stands still until it is moved again.

        Raises:
            JobValueError: If *to* is no aware datetime.
        """
        check_time(f"set({to!r})", to)
        self._base, self._since = to, None

    def tell(self, connection: Connection, tables: JobTables) -> datetime:
        """Return the time; start at the database's if that was not done yet."""
        if self._base is None:
            # From before the question: rather ahead of the database than behind it.
            self._since = time.monotonic()
            self._base = read_clock(connection, tables) + self._ahead
        return self.now()
