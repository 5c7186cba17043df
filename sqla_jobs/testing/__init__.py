"""
Help for tests: run jobs in a test's own transaction, say what must be enqueued, and a
PostgreSQL server that starts by itself.
"""

from __future__ import annotations

from sqla_jobs.testing._asserts import all_enqueued as all_enqueued
from sqla_jobs.testing._asserts import assert_enqueued as assert_enqueued
from sqla_jobs.testing._asserts import refute_enqueued as refute_enqueued
from sqla_jobs.testing._clock import ManualClock as ManualClock
from sqla_jobs.testing._perform import perform as perform
from sqla_jobs.testing._run import drain as drain
from sqla_jobs.testing._run import run_one as run_one
from sqla_jobs.testing.postgres import DatabaseServer as DatabaseServer
from sqla_jobs.testing.postgres import PostgresServer as PostgresServer

__all__ = [
    "DatabaseServer",
    "ManualClock",
    "PostgresServer",
    "all_enqueued",
    "assert_enqueued",
    "drain",
    "perform",
    "refute_enqueued",
    "run_one",
]
