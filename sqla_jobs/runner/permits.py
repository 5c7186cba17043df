"""A handler's own permits: what its `acquire` answered, and how it is given back."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import Any

from sqla_jobs._core.conceal import conceal
from sqla_jobs._core.outcomes import Outcome, Snooze
from sqla_jobs.errors import JobValueError

log = logging.getLogger("sqla_jobs")
REFUSED = Snooze("no permit", after=timedelta(seconds=1))
"""What False means."""


def verdict(name: str, answer: Any) -> Outcome | None:
    """
    Return the outcome that an answer of `acquire` states, None if the job may run.

    Raises:
        JobValueError: If it is no answer.
    """
    if answer is False:
        return REFUSED
    if isinstance(answer, Outcome):
        return answer
    managers = AbstractContextManager, AbstractAsyncContextManager
    if answer is None or answer is True or isinstance(answer, managers):
        return None
    raise JobValueError(
        f"{name}() returned {answer!r}; a permit is None, True, False, a context"
        " manager, or one of Snooze, Retry, Cancel, Complete and Discard"
    )


def refuse_async(name: str, answer: Any) -> None:
    """
    Refuse a context manager that only an event loop can enter.

    Raises:
        JobValueError: If *answer* is one.
    """
    if isinstance(answer, AbstractAsyncContextManager) and not isinstance(
        answer, AbstractContextManager
    ):
        raise JobValueError(
            f"{name}() returned the async context manager {answer!r}, which a sync"
            " handler cannot enter"
        )


def give_back(job_id: int, close: Callable[[], Any]) -> None:
    """Release a permit; the outcome stands, whatever that raises."""
    try:
        close()
    except Exception as exc:
        conceal(exc)
        log.exception("job %s: its permit could not be released", job_id)


async def agive_back(job_id: int, close: Callable[[], Awaitable[Any]]) -> None:
    """Release the permit of an async handler."""
    try:
        await close()
    except Exception as exc:
        conceal(exc)
        log.exception("job %s: its permit could not be released", job_id)
