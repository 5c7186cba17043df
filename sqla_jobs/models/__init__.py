"""Job classes: `JobMixin`, `Arg`, and what they make of the application's Base."""

from __future__ import annotations

from sqla_jobs.models.arg import Arg as Arg
from sqla_jobs.models.arg import arg as arg
from sqla_jobs.models.inspect import JobTables as JobTables
from sqla_jobs.models.inspect import job_tables as job_tables
from sqla_jobs.models.mixins import JobMixin as JobMixin
from sqla_jobs.models.validate import (
    decode_payload as decode_payload,
)
from sqla_jobs.models.validate import (
    validate as validate,
)
