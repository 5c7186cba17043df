"""Two PostgreSQL servers, of which one follows the other and can take its place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import conninfo

from sqla_jobs.errors import PostgresServerError
from sqla_jobs.testing._cluster import _loopback_address
from tests.chaos.server import SETTINGS, Server

PATIENCE = 60.0
FOLLOWED = {
    "wal_level": "replica",
    "max_wal_senders": "10",
    "wal_keep_size": "'256MB'",
    "hot_standby": "on",
    "wal_receiver_timeout": "'5s'",
    "wal_sender_timeout": "'5s'",
    "wal_retrieve_retry_interval": "'100ms'",
}


class Node(Server):
    """One of the two, on a loopback port for clients, a socket for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.port, self.password = "127.0.0.1", 0, ""

    @property
    def socket(self) -> str:
        """The path of the unix socket it listens on."""
        return str(self._home / f".s.PGSQL.{self.port}")

    @property
    def lives(self) -> bool:
        """Whether its server runs."""
        return not self._run("pg_ctl", "status", f"--pgdata={self._data}")

    @property
    def local(self) -> str:
        """What a program of the same user connects with."""
        return conninfo.make_conninfo(
            host=str(self._home), port=self.port, user="postgres", dbname="postgres"
        )

    def lead(self) -> None:
        """Start as the primary, with new data."""
        self._settle_programs()
        self._home.mkdir(0o700)
        self._identity.own(self._home)
        address = _loopback_address()
        self.password, self.port = str(address.password), int(address.settings["port"])
        self._initialise(self.password)
        self._launch(self._all_settings())

    def follow(self, leader: Node) -> None:
        """Start on a copy of another one's data, as its standby."""
        if not self.port:
            self._settle_programs()
            self._home.mkdir(0o700)
            self._identity.own(self._home)
            self.port = int(_loopback_address().settings["port"])
        self.password = leader.password
        shutil.rmtree(self._data, ignore_errors=True)
        copy = ("--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast")
        where = f"--dbname={leader.local}"
        # The leader's socket is in a folder of the same user.
        if self._run("pg_basebackup", f"--pgdata={self._data}", where, *copy):
            raise PostgresServerError(f"no copy was made:\n{self._log_tail()}")
        self.wait_for_standby(synchronous=False)
        self._launch(self._all_settings())

    def promote(self) -> None:
        """Become the primary; return when it takes writes."""
        self.control("promote", "--wait", "--silent")

    def halt(self) -> None:
        """Shut down in order, after the standby has everything."""
        self.control("stop", "--mode=fast", "--wait", "--silent")

    def control(self, *arguments: str) -> None:
        """Run pg_ctl on its data."""
        if self._run("pg_ctl", *arguments, f"--pgdata={self._data}"):
            raise PostgresServerError(f"pg_ctl {arguments}:\n{self._log_tail()}")

    def wait_for_standby(self, *, synchronous: bool) -> None:
        """Say whether commits wait until a standby has written them."""
        path = self.folder / "standby.conf"
        path.write_text(f"synchronous_standby_names = '{'*' if synchronous else ''}'\n")
        path.chmod(0o644)

    def ask(self, statement: str) -> Any:
        """Return the first value that a statement answers with, as its owner."""
        with psycopg.connect(self.address, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
            return None if row is None else row[0]

    @property
    def url(self) -> str:
        """The libpq URL of this one alone."""
        word = quote(self.password)
        return f"postgresql://postgres:{word}@{self.host}:{self.port}/postgres"

    @property
    def address(self) -> str:
        """What a client connects with."""
        return conninfo.make_conninfo(
            host=self.host,
            port=self.port,
            user="postgres",
            password=self.password,
            dbname="postgres",
            connect_timeout=5,
        )

    def _initialise(self, password: str | None) -> None:
        secret = self.folder / "password"
        secret.write_text(str(password))
        secret.chmod(0o600)
        self._identity.own(secret)
        plain = ["--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]
        auth = ["--auth-local=trust", "--auth-host=scram-sha-256"]
        data = [f"--pgdata={self._data}", f"--pwfile={secret}"]
        if self._run("initdb", *data, *plain, *auth):
            raise PostgresServerError(f"initdb failed:\n{self._log_tail()}")
        self.wait_for_standby(synchronous=False)

    def _all_settings(self) -> Mapping[str, str]:
        return {
            **SETTINGS,
            **FOLLOWED,
            "listen_addresses": f"'{self.host}'",
            "port": str(self.port),
            "unix_socket_directories": f"'{self._home}'",
            "include": f"'{self.folder / 'standby.conf'}'",
        }


class Pair:
    """
    A primary and its standby, synchronous by default; has what `Scene` needs.

    `dsn` names both, and leads to the one that takes writes.
    """

    def __init__(self) -> None:
        self.primary, self.standby = Node(), Node()
        self.nodes = [self.primary, self.standby]
        self.folder = self.primary.folder

    def open(self) -> None:
        """Start both."""
        self.primary.lead()
        self.standby.follow(self.primary)
        self.join(synchronous=True)

    def close(self) -> None:
        """End both and delete their data."""
        for node in self.nodes:
            node.close()

    @property
    def dsn(self) -> str:
        """The URL that an application would use."""
        hosts = "&".join(f"host={node.host}:{node.port}" for node in self.nodes)
        word = quote(self.primary.password)
        attributes = "target_session_attrs=read-write"
        return f"postgresql+psycopg://postgres:{word}@/postgres?{hosts}&{attributes}"

    @property
    def log(self) -> str:
        """All that both have written to their logs."""
        return "\n".join(node.log for node in self.nodes)

    def join(self, *, synchronous: bool) -> None:
        """Wait until the standby follows; then let commits wait for it, or not."""
        self.primary.wait_for_standby(synchronous=synchronous)
        self.primary.control("reload", "--silent")
        wanted = "sync" if synchronous else "async"
        follows = (
            "SELECT count(*) FROM pg_stat_replication"
            f" WHERE state = 'streaming' AND sync_state = '{wanted}'"
        )
        until(lambda: self.primary.ask(follows))

    def fail_over(self) -> float:
        """
        Kill the primary with SIGKILL and promote the standby.

        Returns:
            The monotonic time of the kill.
        """
        at = time.monotonic()
        self.primary.crash()
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        return at

    def switch_over(self) -> None:
        """Promote the standby in order; the old primary comes back as the standby."""
        self.primary.halt()
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        self.standby.follow(self.primary)

    def rebuild(self, *, synchronous: bool = True) -> None:
        """Make the one that is down the standby of the other, if one is."""
        if not self.standby.lives:
            self.standby.follow(self.primary)
        self.join(synchronous=synchronous)

    def wait_for_nobody(self) -> None:
        """Let commits end without the standby, which is gone."""
        self.primary.wait_for_standby(synchronous=False)
        self.primary.control("reload", "--silent")

    def cut(self) -> None:
        """Let the standby, which has all there is by now, receive nothing more."""
        here = self.primary.ask("SELECT pg_current_wal_lsn()")
        there = f"SELECT pg_last_wal_replay_lsn() >= '{here}'"
        until(lambda: self.standby.ask(there))
        self.standby.ask("ALTER SYSTEM SET primary_conninfo = 'host=/nowhere'")
        self.standby.control("reload", "--silent")
        receives = "SELECT count(*) FROM pg_stat_wal_receiver"
        until(lambda: not self.standby.ask(receives))


def until(ready: Callable[[], Any]) -> None:
    """Wait until *ready()* is true."""
    end = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > end:
            raise PostgresServerError("the standby does not follow")
        time.sleep(0.05)


def why_not() -> str | None:
    """Return why no pair can be started here; None if one can."""
    from sqla_jobs.testing import _binaries

    try:
        folder = _binaries.find_binaries()
    except PostgresServerError as exc:
        return str(exc)
    if not Path(folder, "pg_basebackup").exists():
        return f"needs pg_basebackup, which is not in {folder}"
    return None
