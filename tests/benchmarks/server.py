"""The database server: its databases, its counters, and the calibration loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, LiteralString, Self

import psutil
import psycopg
from psycopg import sql
from sqlalchemy import make_url

from sqla_jobs.testing import PostgresServer

SETTINGS: dict[str, str | int] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    # A checkpoint in the middle of a figure would cost the one it happens to hit.
    "checkpoint_timeout": "30min",
    "max_connections": 200,
    "shared_preload_libraries": "pg_stat_statements",
}
SHOWN = (
    *("server_version", "fsync", "synchronous_commit", "full_page_writes"),
    *("shared_buffers", "max_wal_size", "checkpoint_timeout", "autovacuum"),
)
OURS = "/* bench */"
"""Marks statements of the harness, which count for nobody."""
CALIBRATION_ROWS = 20_000


@dataclass(frozen=True)
class Counters:
    """What the server counted; None where it does not tell."""

    statements: float | None
    transactions: float
    wal: float
    cpu: float | None


@contextmanager
def own_server(dsn: str | None) -> Iterator[Server]:
    """Yield the server of *dsn*, or one that is started for the benchmark."""
    if dsn is not None:
        with Server(dsn) as server:
            yield server
        return
    with PostgresServer(**SETTINGS) as started, Server(started.dsn) as server:
        yield server


class Server:
    """
    A server, and databases on it that are gone at the end.

    Args:
        dsn: SQLAlchemy URL of a database; its user makes databases, and reads the
            position of the WAL. Names of the others begin with its name.
    """

    def __init__(self, dsn: str) -> None:
        url = make_url(dsn).set(drivername="postgresql")
        self._url = url
        self._prefix = f"{url.database}_bench"
        self._made: set[str] = set()
        self.admin = psycopg.connect(self.uri(url.database or ""), autocommit=True)
        self.has_statements = self._load_statements()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(psycopg.Error):
            for name in sorted(self._made):
                self._drop(name)
        self.admin.close()

    def uri(self, database: str) -> str:
        """Return the libpq URI of *database*."""
        return self._url.set(database=database).render_as_string(hide_password=False)

    def _load_statements(self) -> bool:
        with suppress(psycopg.Error):
            self.admin.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            self.admin.execute("SELECT FROM pg_stat_statements LIMIT 1")
            return True
        return False

    def settings(self) -> dict[str, str]:
        """Return the settings that matter."""
        rows = self.admin.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)",
            (list(SHOWN),),
        )
        return dict(rows.fetchall())

    # Databases

    def create(self, name: str, template: str | None = None) -> str:
        """
        Create database *name* anew, as a copy of *template* if given; return its URI.

        Its name on the server gets a prefix.
        """
        full = f"{self._prefix}_{name}"
        self._drop(full)
        parts: list[sql.Composable] = [
            sql.SQL("CREATE DATABASE {}").format(sql.Identifier(full))
        ]
        if template is not None:
            original = sql.Identifier(f"{self._prefix}_{template}")
            parts.append(sql.SQL("TEMPLATE {}").format(original))
            if self.admin.info.server_version >= 150_000:
                # A copy by WAL would write a million rows twice.
                parts.append(sql.SQL("STRATEGY file_copy"))
        self.admin.execute(sql.SQL(" ").join(parts))
        self._made.add(full)
        return self.uri(full)

    def drop(self, name: str) -> None:
        """Drop database *name*, which need not exist."""
        self._drop(f"{self._prefix}_{name}")

    def _drop(self, full: str) -> None:
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self.admin.execute(statement.format(sql.Identifier(full)))
        self._made.discard(full)

    def checkpoint(self) -> None:
        """Make the server write all pages, so that none is written in between."""
        with suppress(psycopg.errors.InsufficientPrivilege):
            self.admin.execute("CHECKPOINT")

    def wait_until_left(self, uri: str) -> None:
        """Wait until nobody is connected: a leaving backend reports its counters."""
        name = make_url(uri).database
        statement = (
            "SELECT FROM pg_stat_activity WHERE datname = %s"
            " AND backend_type = 'client backend'"
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.admin.execute(statement, (name,)).fetchone() is None:
                return
            time.sleep(0.02)

    # Counters

    def counters(self, uri: str) -> Counters:
        """Return what was counted for a database so far."""
        name = make_url(uri).database
        row = self.admin.execute(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8, xact_commit::float8"
            " FROM pg_stat_database WHERE datname = %s",
            (name,),
        ).fetchone()
        assert row is not None
        return Counters(self._statements(name), row[1], row[0], self.cpu())

    def _statements(self, name: str | None) -> float | None:
        if not self.has_statements:
            return None
        row = self.admin.execute(
            "SELECT coalesce(sum(calls), 0)::float8 FROM pg_stat_statements s JOIN"
            " pg_database d ON d.oid = s.dbid WHERE datname = %s AND query !~*"
            " '^(begin|commit|rollback|start transaction)' AND strpos(query, %s) = 0",
            (name, OURS),
        ).fetchone()
        assert row is not None
        return float(row[0])

    @cached_property
    def _postmaster(self) -> psutil.Process | None:
        """The server's first process, if it is on this machine."""
        with suppress(psutil.Error):
            process = psutil.Process(self.admin.info.backend_pid).parent()
            if process is not None and "postgres" in process.name().lower():
                return process
        return None

    def cpu(self) -> float | None:
        """Return the CPU seconds of all its processes; None on another machine."""
        first = self._postmaster
        if first is None:
            return None
        spent = first.cpu_times()
        total = spent.user + spent.system
        # Those that ended, as far as the platform says.
        total += getattr(spent, "children_user", 0.0)
        total += getattr(spent, "children_system", 0.0)
        return float(total + sum(map(cpu_of, first.children())))


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds of one process; 0.0 if it has ended."""
    with suppress(psutil.Error):
        spent = process.cpu_times()
        return float(spent.user + spent.system)
    return 0.0


class Calibration:
    """
    The raw limit beside each figure: psycopg claims 100 and deletes them, no handlers.

    Args:
        server: Where its own database is made.
        rows: Of one run.
    """

    TABLE: LiteralString = (
        "CREATE TABLE calibration (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " queue text NOT NULL, priority int NOT NULL DEFAULT 0, status text NOT NULL"
        " DEFAULT 'todo', args jsonb NOT NULL, attempts int NOT NULL DEFAULT 0,"
        " run_at timestamptz NOT NULL DEFAULT now(), started_at timestamptz)"
    )
    INDEX: LiteralString = (
        "CREATE INDEX calibration_claim ON calibration (queue, priority DESC, id)"
        " WHERE status = 'todo'"
    )
    CLAIM: LiteralString = (
        "UPDATE calibration SET status = 'doing', attempts = attempts + 1, started_at ="
        " now() FROM (SELECT id FROM calibration WHERE status = 'todo' AND queue ="
        " 'default' AND run_at <= now() ORDER BY priority DESC, id FOR UPDATE SKIP"
        " LOCKED LIMIT 100) AS due WHERE calibration.id = due.id RETURNING"
        " calibration.*"
    )

    def __init__(self, server: Server, rows: int = CALIBRATION_ROWS) -> None:
        self.rows = rows
        uri = server.create("calibration")
        self.connection = psycopg.connect(uri, autocommit=True)
        self.connection.execute(self.TABLE)
        self.connection.execute(self.INDEX)

    def rate(self) -> float:
        """Run it once and return its rows per second."""
        self._refill()
        start, done = time.perf_counter(), 0
        while rows := self.connection.execute(self.CLAIM).fetchall():
            ids = [row[0] for row in rows]
            self.connection.execute(
                "DELETE FROM calibration WHERE id = ANY(%s)", (ids,)
            )
            done += len(ids)
        assert done == self.rows
        return done / (time.perf_counter() - start)

    def _refill(self) -> None:
        statements: tuple[tuple[LiteralString, tuple[Any, ...]], ...] = (
            ("TRUNCATE calibration", ()),
            (
                (
                    "INSERT INTO calibration (queue, args) SELECT 'default', '{}'"
                    " FROM generate_series(1, %s::int)"
                ),
                (self.rows,),
            ),
            ("VACUUM ANALYZE calibration", ()),
        )
        for statement, values in statements:
            self.connection.execute(statement, values)
