"""Whose backoff a failed job waits out: its own, its class's, queue's or root's."""

from __future__ import annotations

from typing import Any

from sqla_jobs._core.backoff import DEFAULT_BACKOFF, Backoff, parse_backoff
from sqla_jobs._core.limits import Features
from sqla_jobs.errors import JobValueError
from sqla_jobs.models.inspect import JobTables


def backoff_for(
    tables: JobTables, kind: str, spec: str, queue: str | None = None
) -> Backoff:
    """
    Return the backoff of a job with the text *spec* in its row.

    Args:
        kind: Of the job; it may be one that is not mapped here.
        queue: The text of its queue's backoff, which applies if neither the job nor
            its class below the root states one. Default None, the queue has none.
    """
    cls = tables.kinds.get(kind, tables.root)
    if queue is not None and not _is_stated(tables.root, cls, spec):
        spec = queue
    try:
        return parse_backoff(spec, custom=cls.__job_options__.backoff)
    except JobValueError:  # a row written by hand, or by a newer version
        return DEFAULT_BACKOFF


def backoff_of_queue(features: Features, queue: str) -> str | None:
    """Return the text of a queue's backoff, None if it has none."""
    settings = features.queues.get(queue)
    return None if settings is None else settings.backoff


def _is_stated(root: type[Any], cls: type[Any], spec: str) -> bool:
    """Whether the job or its class below the root has a backoff of its own."""
    if spec != root.__job_options__.backoff.spec():
        return True
    above = root.__mro__
    own = [base.__dict__.get("__job_keywords__", {}) for base in cls.__mro__]
    return any(
        "backoff" in keywords
        for base, keywords in zip(cls.__mro__, own, strict=True)
        if base not in above
    )
