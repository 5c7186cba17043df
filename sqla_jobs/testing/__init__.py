"""Help for tests and demonstrations: a PostgreSQL server that starts by itself."""

from __future__ import annotations

from sqla_jobs.testing.postgres import DatabaseServer as DatabaseServer
from sqla_jobs.testing.postgres import PostgresServer as PostgresServer

__all__ = ["DatabaseServer", "PostgresServer"]
