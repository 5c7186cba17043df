"""Job classes: `JobMixin`, `Arg`, and what they make of the application's Base."""

from __future__ import annotations

from sqla_jobs.models.arg import Arg, arg
from sqla_jobs.models.inspect import JobTables, job_tables, known_roots
from sqla_jobs.models.mixins import JobMixin
from sqla_jobs.models.validate import decode_payload, validate

__all__ = [
    "Arg",
    "JobMixin",
    "JobTables",
    "arg",
    "decode_payload",
    "job_tables",
    "known_roots",
    "validate",
]
