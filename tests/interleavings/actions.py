"""What the scripts of all scenarios call, and how a guard of it is taken away."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

from sqlalchemy import insert
from sqlalchemy.orm import Session

from sqla_jobs import request_cancel, requeue
from sqla_jobs._dialects.postgresql import PostgreSQLDialect
from sqla_jobs._store import holds, verbs
from sqla_jobs._store.claim import Claim, claim
from sqla_jobs._store.queues import set_queue
from sqla_jobs._store.sweep import rescue
from sqla_jobs.models import job_tables
from tests.conformance.factories import LEASE, NOW, SECOND, Effect, Job
from tests.interleavings.harness import Scene, Script, Twin

LATE = NOW + LEASE + SECOND
TABLES = job_tables(Job)
JOBS = TABLES.table
HELD = Claim(
    0, 1, "work", "default", 1, 10, "default", NOW + LEASE, {}, None, {}, TABLES
)
"""What the holder of a job has that `make_job` made as running, but for the id."""


def expire_holds(session: Session, job_class: Any, *, now: Any) -> int:
    """Cancel held jobs whose time is over, as a sweep does."""
    return holds.expire_holds(session, job_tables(job_class), now=now)


class Verbs(NamedTuple):
    """The library's; a twin has others."""

    claim: Callable[..., list[Claim]] = claim
    complete: Callable[..., None] = verbs.complete
    fail: Callable[..., Any] = verbs.fail
    snooze: Callable[..., None] = verbs.snooze
    release: Callable[..., None] = verbs.release
    checkpoint: Callable[..., Any] = verbs.checkpoint
    renew: Callable[..., Any] = verbs.renew
    rescue: Callable[..., Any] = rescue
    cancel: Callable[..., Any] = request_cancel
    requeue: Callable[..., Any] = requeue
    confirm: Callable[..., None] = holds.confirm_hold
    extend: Callable[..., None] = holds.extend_hold
    abort: Callable[..., None] = holds.abort_hold
    expire: Callable[..., int] = expire_holds
    set_queue: Callable[..., Any] = set_queue


def claimer(
    session: Session, scene: Scene, *, now: Any = NOW, complete: bool = True
) -> Script:
    """Claim a job if there is one, and complete it."""
    found = scene.verbs.claim(session, Job, now=now)
    yield
    scene.commit(session, *(("claim", one.job_id) for one in found))
    for one in found if complete else ():
        yield
        scene.verbs.complete(session, one, now=now)
        yield
        scene.commit(session, ("complete", one.job_id))


def add_effect(session: Session, note: str) -> None:
    """Write something of the application's."""
    session.connection().execute(_EFFECT, {"note": note})


_EFFECT = insert(Effect)


class Unlocked(PostgreSQLDialect):
    """A dialect that locks no rows."""

    def lock(self, stmt: Any, **_: Any) -> Any:
        """Return *stmt* as it is."""
        return stmt


def without_locks(module: ModuleType, *names: str) -> Twin:
    """Return a twin whose statements, built by *names* of *module*, lock no rows."""
    return Twin(patches=[_unlocked(module, name) for name in names])


def _unlocked(module: ModuleType, name: str) -> Any:
    found, dialect = getattr(module, name), Unlocked()
    build = getattr(found, "__wrapped__", found)  # not what is built already

    @lru_cache
    def unlocked(tables: Any, _: Any, *args: Any, **options: Any) -> Any:
        return build(tables, dialect, *args, **options)

    return patch.object(module, name, unlocked)


def without_name_locks(module: ModuleType) -> Twin:
    """Return a twin where *module* takes no locks on names."""
    return Twin(patches=[patch.object(module, "lock_names", lambda *_, **__: None)])
