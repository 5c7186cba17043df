"""The job system for SQLAlchemy applications: jobs are rows of your own metadata."""

from __future__ import annotations

from sqla_jobs._core.options import Retention as Retention
from sqla_jobs._core.outcomes import Cancel as Cancel
from sqla_jobs.models import Arg as Arg
from sqla_jobs.models import JobMixin as JobMixin
from sqla_jobs.models import arg as arg
