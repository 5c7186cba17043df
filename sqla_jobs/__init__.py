"""The job system for SQLAlchemy applications: jobs are rows of your own metadata."""

from __future__ import annotations

from sqla_jobs._core.backoff import Backoff, constant, custom, exponential, linear
from sqla_jobs._core.options import Retention
from sqla_jobs._core.outcomes import Cancel, Complete, Discard, Outcome, Retry, Snooze
from sqla_jobs._core.states import JobState
from sqla_jobs.errors import (
    AttemptInterrupted,
    DuplicateJob,
    JobDefinitionError,
    JobValueError,
    LeaseLost,
    MissingTables,
    PayloadError,
    SqlaJobsError,
    UnsupportedDialect,
)
from sqla_jobs.handlers import handles
from sqla_jobs.models import Arg, JobMixin, arg

__all__ = [
    "Arg",
    "AttemptInterrupted",
    "Backoff",
    "Cancel",
    "Complete",
    "Discard",
    "DuplicateJob",
    "JobDefinitionError",
    "JobMixin",
    "JobState",
    "JobValueError",
    "LeaseLost",
    "MissingTables",
    "Outcome",
    "PayloadError",
    "Retention",
    "Retry",
    "Snooze",
    "SqlaJobsError",
    "UnsupportedDialect",
    "arg",
    "constant",
    "custom",
    "exponential",
    "handles",
    "linear",
]
