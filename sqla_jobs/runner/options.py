"""The options of a runner, checked when it is made."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import URL, Engine

from sqla_jobs._core.options import problem_of
from sqla_jobs._core.plan import Slots
from sqla_jobs._store.claim import check_lease, check_share
from sqla_jobs.errors import JobDefinitionError, JobValueError
from sqla_jobs.handlers import Handler, handler_for, is_async
from sqla_jobs.models import JobTables
from sqla_jobs.runner.execute import Around, OnError, Surroundings

log = logging.getLogger("sqla_jobs")


@dataclass(frozen=True)
class Options:
    """The checked options of a runner."""

    slots: Slots
    threads: int | None
    name: str
    lease: timedelta
    poll: timedelta
    grace: timedelta
    retry_share: float
    listen: bool
    listen_url: URL | None
    resources: Any
    middleware: tuple[Around, ...]
    on_error: OnError | None
    max_crashes: int

    def __post_init__(self) -> None:
        if problem := problem_of("queue", self.name):
            raise JobValueError(f"name={self.name!r} {problem}")
        _check_threads(self.threads)
        check_lease(self.lease)
        for name, value in (("poll", self.poll), ("grace", self.grace)):
            if not isinstance(value, timedelta):
                raise JobValueError(
                    f"{name} must be a timedelta, e.g. timedelta(seconds=1),"
                    f" got {value!r}"
                )
        if self.poll <= timedelta(0):
            raise JobValueError(f"poll must be above zero, got {self.poll}")
        if self.grace < timedelta(0):
            raise JobValueError(f"grace must be zero or more, got {self.grace}")
        check_share(self.retry_share)
        if self.max_crashes < 1:
            raise JobValueError(
                f"max_crashes must be 1 or more, got {self.max_crashes}"
            )

    @property
    def most_threads(self) -> int:
        """The most threads that run jobs: more than there are slots have no use."""
        return min(self.threads or self.slots.most, self.slots.most)


def _check_threads(threads: object) -> None:
    if threads is None:
        return
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise JobValueError(
            f"threads must be a whole number of 1 or more, got {threads!r};"
            " None, the default, is one for each slot"
        )


def default_name() -> str:
    """Return the name of a runner that got none: host and process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


def shortest_lease(tables: JobTables, options: Options) -> timedelta:
    """Return the shortest lease that jobs of a runner get, their own ones aside."""
    of_classes = [cls.__job_options__ for cls in tables.kinds.values()]
    own: list[timedelta] = [one.lease for one in of_classes if one.lease]
    return min([options.lease, *own])


def check_callables(
    options: Options | Surroundings, runs: Callable[[Handler], bool]
) -> None:
    """
    Check that middleware and `on_error` can be called as they will be.

    Raises:
        JobValueError: If one is not callable, or is async where nothing awaits it.
    """
    for layer in options.middleware:
        if not callable(layer):
            raise JobValueError(f"middleware {layer!r} is not callable")
        if not runs(Handler(layer, is_async(layer))):
            raise JobValueError(
                f"middleware {layer!r} would never run: async middleware is for async"
                " handlers under an AsyncRunner, sync middleware for sync handlers"
            )
    if options.on_error is not None and is_async(options.on_error):
        raise JobValueError(
            f"on_error {options.on_error!r} is async; give a plain function"
        )


def choose_handlers(
    tables: JobTables,
    kinds: Sequence[str | type[Any]] | None,
    runs: Callable[[Handler], bool],
) -> dict[str, Handler]:
    """
    Return the handlers by kind and alias that a runner may claim for.

    Raises:
        JobValueError: If *kinds* names one that is not mapped.
        JobDefinitionError: If *kinds* names one without a handler it can run.
    """
    found = {}
    for kind, cls in tables.kinds.items():
        handler = handler_for(cls)
        if handler is not None and runs(handler):
            found[kind] = handler
    if kinds is None:
        return found
    if isinstance(kinds, str):
        raise JobValueError(f"kinds must be a list, got {kinds!r}")
    return {k: found[k] for item in kinds for k in _kinds_of(tables, item, found)}


def _kinds_of(
    tables: JobTables, item: str | type[Any], found: Mapping[str, Handler]
) -> list[str]:
    cls = tables.kinds.get(item) if isinstance(item, str) else item
    if cls is None or cls not in tables.kinds.values():
        known = ", ".join(sorted(tables.kinds)) or "none"
        raise JobValueError(
            f"kinds= names {item!r}, which is not mapped; known: {known}"
        )
    names = [kind for kind, other in tables.kinds.items() if other is cls]
    if not any(name in found for name in names):
        handler = handler_for(cls)
        why = (
            "has no handler; give the class a run() method, or a function @handles(...)"
            if handler is None
            else "has an async handler, which an AsyncRunner runs"
            if handler.is_async
            else "has a sync handler; give the AsyncRunner sync_session=, or use Runner"
        )
        raise JobDefinitionError(f"kinds= names {item!r}: {cls.__name__} {why}")
    return names


def warn_small_pool(engine: Engine, at_once: int, name: str) -> None:
    """Explain a pool that handlers will wait for; never a deadlock, but slow."""
    pool = engine.pool
    size = getattr(pool, "size", None)
    if size is None:
        return
    most = size() + max(0, getattr(pool, "_max_overflow", 0))
    if getattr(pool, "_max_overflow", 0) == -1 or most >= at_once:
        return
    log.warning(
        "%s: the engine's pool has %s connections for %s jobs at once: handlers that"
        " use ctx.session will wait for one another; create_engine(..., pool_size=%s)",
        name,
        most,
        at_once,
        at_once,
    )
