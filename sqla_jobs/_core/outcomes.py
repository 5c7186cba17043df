"""What an attempt ended in; handlers return or raise these."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqla_jobs.errors import JobValueError


class Outcome(Exception):
    """
    A stated end of an attempt: return it to keep the handler's writes, raise it to roll
    back those since the last commit.
    """


class Complete(Outcome):
    """The job succeeded. *result* is a JSON value; default None."""

    def __init__(self, result: Any = None) -> None:
        super().__init__()
        self.result = result


class _Later(Outcome):
    """Run again *after* a duration or *at* an aware datetime."""

    def __init__(
        self,
        reason: str | None = None,
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
    ) -> None:
        super().__init__(reason or type(self).__name__.lower())
        self.reason, self.at, self.after = reason, at, after
        _check_later(type(self).__name__, at, after)


class Retry(_Later):
    """
    The attempt failed; run again, at an exact time if one is given, else after the
    job's backoff. Counts as an attempt; on the last one the job is discarded.

    Raises:
        JobValueError: If both *at* and *after* are given, *at* is naive, or *after*
            is negative.
    """


class Snooze(_Later):
    """
    Not now; run again later. The attempt is given back.

    Raises:
        JobValueError: If not exactly one of *at* and *after* is given, *at* is naive,
            or *after* is negative.
    """

    def __init__(
        self,
        reason: str | None = None,
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
    ) -> None:
        super().__init__(reason, at=at, after=after)
        if at is None and after is None:
            raise JobValueError("Snooze needs at= or after=")


class Cancel(Outcome):
    """The job is no longer wanted; it ends `cancelled` with *reason*."""

    def __init__(self, reason: str = "cancelled by its handler") -> None:
        super().__init__(reason)
        self.reason = reason


class Discard(Outcome):
    """The job can never succeed; it ends `discarded` with *reason*."""

    def __init__(self, reason: str = "discarded by its handler") -> None:
        super().__init__(reason)
        self.reason = reason


def _check_later(name: str, at: datetime | None, after: timedelta | None) -> None:
    if at is not None and after is not None:
        raise JobValueError(f"{name} takes at= or after=, not both")
    if at is not None and not isinstance(at, datetime):
        raise JobValueError(f"{name}(at={at!r}) must be an aware datetime")
    if after is not None and not isinstance(after, timedelta):
        raise JobValueError(
            f"{name}(after={after!r}) must be a timedelta, e.g. timedelta(seconds=30)"
        )
    if at is not None and at.tzinfo is None:
        raise JobValueError(
            f"{name}(at={at!r}) is naive; give it a time zone, e.g. tzinfo=timezone.utc"
        )
    if after is not None and after < timedelta(0):
        raise JobValueError(f"{name}(after={after!r}) is negative")
