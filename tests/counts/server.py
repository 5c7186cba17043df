"""A server of its own, and what loops on it cost: counted, never timed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import psycopg
from sqlalchemy import make_url

from sqla_jobs.testing import PostgresServer
from tests.drivers.proxy import CHUNK, Proxy

SETTINGS: dict[str, Any] = {
    "shared_preload_libraries": "pg_stat_statements",
    # Nobody but the loop writes, and no page is written whole: WAL is that of the rows.
    "autovacuum": False,
    "full_page_writes": False,
    "checkpoint_timeout": "1d",
    "max_wal_size": "8GB",
    "timezone": "UTC",
}
IN_PLAIN_TEXT = {"sslmode": "disable", "gssencmode": "disable"}
READY = ord("Z")
OUTSIDE = b"I"
STATEMENTS = """
SELECT coalesce(sum(calls), 0), coalesce(sum(shared_blks_hit + shared_blks_read), 0)
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = %s)
AND query !~* '^ *(begin|commit|rollback)'
"""
WAL = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"


class Counts(NamedTuple):
    """
    What one job, or one claim, costs.

    BEGIN and COMMIT are round trips, but not among the statements. A transaction is
    what ends with the server outside of one. Buffers are those that statements hit or
    read; WAL is in bytes.
    """

    statements: float
    transactions: float
    round_trips: float
    wal: float
    buffers: float

    def per(self, units: int) -> Counts:
        """Return the counts of one of so many."""
        return Counts(*(one / units for one in self))

    def plus(self, other: Counts) -> Counts:
        """Return the sum."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def less(self, other: Counts) -> Counts:
        """Return what is beyond *other*."""
        return Counts(*(a - b for a, b in zip(self, other, strict=True)))


class Wire(Proxy):
    """Leads to the server, and counts its answers: each ends with ReadyForQuery."""

    round_trips = transactions = 0

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        rest = b""
        try:
            while data := server.recv(CHUNK):
                rest = self._count(rest + data)
                client.sendall(data)
        except OSError:
            pass
        finally:
            client.close()

    def _count(self, data: bytes) -> bytes:
        """Count the whole messages of *data*, and return the rest."""
        at = 0
        while len(data) >= at + 5:
            end = at + 1 + int.from_bytes(data[at + 1 : at + 5])
            if len(data) < end:
                break
            if data[at] == READY:
                self.round_trips += 1
                self.transactions += data[at + 5 : end] == OUTSIDE
            at = end
        return data[at:]


@dataclass
class Counted:
    """The server's counters, before and after a loop."""

    dsn: str
    wire: Wire
    watch: psycopg.Connection[Any]

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[Self]:
        """Yield them on a new server with an empty database."""
        with ExitStack() as stack:
            server = stack.enter_context(PostgresServer(**SETTINGS))
            direct = make_url(server.create_database("counted"))
            wire = Wire(direct.render_as_string(hide_password=False))
            stack.callback(wire.close)
            url = make_url(wire.dsn).update_query_dict(IN_PLAIN_TEXT)
            # In another database: its own statements are not counted.
            own = server.dsn.replace("+psycopg", "")
            watch = stack.enter_context(psycopg.connect(own, autocommit=True))
            watch.execute("CREATE EXTENSION pg_stat_statements")
            yield cls(url.render_as_string(hide_password=False), wire, watch)

    @property
    def server(self) -> int:
        """The server's major version."""
        return self.watch.info.server_version // 10_000

    def count(self, loop: Callable[[], object]) -> Counts:
        """Return what *loop* costs; nothing else may use the server meanwhile."""
        self.watch.execute("CHECKPOINT")
        self.watch.execute("SELECT pg_stat_statements_reset()")
        before = self.wire.transactions, self.wire.round_trips, self._wal()
        loop()
        after = self.wire.transactions, self.wire.round_trips, self._wal()
        statements, buffers = self._row(STATEMENTS, "counted")
        used = [b - a for a, b in zip(before, after, strict=True)]
        return Counts(int(statements), used[0], used[1], used[2], int(buffers))

    def _wal(self) -> int:
        return int(self._row(WAL)[0])

    def _row(self, statement: str, *params: Any) -> tuple[Any, ...]:
        row = self.watch.execute(statement.encode(), params or None).fetchone()
        assert row is not None
        return tuple(row)
