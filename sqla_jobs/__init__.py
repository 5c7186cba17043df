"""The job system for SQLAlchemy applications: jobs are rows of your own metadata."""

from __future__ import annotations

import sqla_jobs.alembic  # noqa: F401 - shows autogenerate what it cannot see
from sqla_jobs._core.backoff import Backoff, constant, custom, exponential, linear
from sqla_jobs._core.explanation import Explanation, Reason, Why
from sqla_jobs._core.limits import QueueSettings
from sqla_jobs._core.options import Retention
from sqla_jobs._core.outcomes import Cancel, Complete, Discard, Outcome, Retry, Snooze
from sqla_jobs._core.priority import Priority
from sqla_jobs._core.states import JobState
from sqla_jobs._core.subscriptions import Prefix
from sqla_jobs._hooks import install
from sqla_jobs._store.claim import Claim, claim
from sqla_jobs._store.counts import JobCount, JobStatus, counts, exists
from sqla_jobs._store.dead import dead_letters, history
from sqla_jobs._store.enqueue import enqueue_many
from sqla_jobs._store.enqueue_one import Enqueued, enqueue
from sqla_jobs._store.enqueue_select import enqueue_select
from sqla_jobs._store.explain import explain
from sqla_jobs._store.holds import abort_hold, confirm_hold, extend_hold
from sqla_jobs._store.operate import (
    CancelResult,
    RequeueResult,
    request_cancel,
    requeue,
)
from sqla_jobs._store.queued import find_queued
from sqla_jobs._store.queues import queue_settings, set_queue
from sqla_jobs._store.retention import purge, purge_archive
from sqla_jobs._store.schema import check
from sqla_jobs._store.sweep import Rescued, Staged, rescue, stage
from sqla_jobs._store.verbs import (
    cancel,
    checkpoint,
    complete,
    discard,
    fail,
    release,
    renew,
    snooze,
)
from sqla_jobs._store.wake import notify_runners
from sqla_jobs.errors import (
    AttemptInterrupted,
    Difference,
    DuplicateJob,
    HoldExpired,
    JobDefinitionError,
    JobNotFound,
    JobValueError,
    LeaseLost,
    MissingTables,
    PayloadError,
    SchemaMismatch,
    SqlaJobsError,
    UnsupportedDialect,
)
from sqla_jobs.handlers import handles
from sqla_jobs.models import Arg, JobMixin, arg
from sqla_jobs.runner.aio import AsyncRunner
from sqla_jobs.runner.batch_context import AsyncBatchContext, BatchContext
from sqla_jobs.runner.context import AsyncContext, Context
from sqla_jobs.runner.threads import Runner
from sqla_jobs.runner.wait import wait

__all__ = [
    "Arg",
    "AsyncBatchContext",
    "AsyncContext",
    "AsyncRunner",
    "AttemptInterrupted",
    "Backoff",
    "BatchContext",
    "Cancel",
    "CancelResult",
    "Claim",
    "Complete",
    "Context",
    "Difference",
    "Discard",
    "DuplicateJob",
    "Enqueued",
    "Explanation",
    "HoldExpired",
    "JobCount",
    "JobDefinitionError",
    "JobMixin",
    "JobNotFound",
    "JobState",
    "JobStatus",
    "JobValueError",
    "LeaseLost",
    "MissingTables",
    "Outcome",
    "PayloadError",
    "Prefix",
    "Priority",
    "QueueSettings",
    "Reason",
    "RequeueResult",
    "Rescued",
    "Retention",
    "Retry",
    "Runner",
    "SchemaMismatch",
    "Snooze",
    "SqlaJobsError",
    "Staged",
    "UnsupportedDialect",
    "Why",
    "abort_hold",
    "arg",
    "cancel",
    "check",
    "checkpoint",
    "claim",
    "complete",
    "confirm_hold",
    "constant",
    "counts",
    "custom",
    "dead_letters",
    "discard",
    "enqueue",
    "enqueue_many",
    "enqueue_select",
    "exists",
    "explain",
    "exponential",
    "extend_hold",
    "fail",
    "find_queued",
    "handles",
    "history",
    "install",
    "linear",
    "notify_runners",
    "purge",
    "purge_archive",
    "queue_settings",
    "release",
    "renew",
    "request_cancel",
    "requeue",
    "rescue",
    "set_queue",
    "snooze",
    "stage",
    "wait",
]
