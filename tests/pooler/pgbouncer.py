"""A private PgBouncer in transaction mode, between the tests and their server."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg.rows import dict_row
from sqlalchemy import URL, make_url

from sqla_jobs.testing import _folders

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PORT = 6432  # of the name of its unix socket
PATIENCE = 20.0

SETTINGS = f"""
[databases]
* = host={{host}} port={{port}}

[pgbouncer]
pool_mode = transaction
listen_addr =
listen_port = {PORT}
unix_socket_dir = {{folder}}
auth_type = trust
auth_file = {{folder}}/users.txt
admin_users = {{user}}
max_client_conn = 500
default_pool_size = {{size}}
logfile = {{folder}}/pgbouncer.log
server_check_delay = 0
"""

# Ends with us, however we end: its standard input is a pipe of ours.
GUARD = '"$0" -q "$1" & cat >/dev/null; kill -9 $!; wait $! 2>/dev/null'


def why_not() -> str | None:
    """Return why no PgBouncer can be started here; None if one can."""
    if os.name != "posix":
        return "PgBouncer is tried on POSIX systems only"
    if PROGRAM is None:
        return "needs the program pgbouncer: apt-get install pgbouncer"
    return None


class PgBouncer:
    """
    A pooler in front of the server of *dsn*, on a unix socket of its own.

    Args:
        dsn: SQLAlchemy URL of a database of the server.
        size: Connections to the server, per database. Default 20.
    """

    def __init__(self, dsn: str, *, size: int = 20) -> None:
        assert PROGRAM is not None
        self.direct = make_url(dsn)
        self.user = self.direct.username or "postgres"
        identity = _folders.server_identity()
        self.folder = _folders.make_folder(identity) / "b"
        self.folder.mkdir(0o755)
        identity.own(self.folder)
        self._write(size)
        self._identity = identity
        self._process = self._launch()

    @property
    def dsn(self) -> str:
        """The URL of the same database through the pooler."""
        url = URL.create(
            self.direct.drivername,
            self.direct.username,
            database=self.direct.database,
            query={"host": str(self.folder), "port": str(PORT)},
        )
        return url.render_as_string(hide_password=False)

    def ask(self, command: str) -> list[dict[str, Any]]:
        """Return the rows that its console answers a command with."""
        where = conninfo.make_conninfo(
            host=str(self.folder), port=PORT, user=self.user, dbname="pgbouncer"
        )
        with psycopg.connect(where, autocommit=True) as connection:
            cursor = psycopg.ClientCursor(connection, row_factory=dict_row)
            cursor.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def restart(self) -> None:
        """End it at once and start it again, at the same place."""
        self._end()
        self._process = self._launch()

    def close(self) -> None:
        """End it, and delete its folder."""
        self._end()
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _write(self, size: int) -> None:
        url, user = self.direct, self.user
        text = SETTINGS.format(
            host=url.host or url.query["host"],
            port=url.port or url.query.get("port", "5432"),
            folder=self.folder,
            user=user,
            size=size,
        )
        for name, content in (("pgbouncer.ini", text), ("users.txt", f'"{user}" ""\n')):
            path = Path(self.folder, name)
            path.write_text(content)
            path.chmod(0o644)

    def _launch(self) -> subprocess.Popen[bytes]:
        assert PROGRAM is not None
        socket = self.folder / f".s.PGSQL.{PORT}"
        socket.unlink(missing_ok=True)
        process = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, PROGRAM, str(self.folder / "pgbouncer.ini")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,
            user=self._identity.user,
            group=self._identity.group,
            extra_groups=None if self._identity.user is None else [],
        )
        until = time.monotonic() + PATIENCE
        while not socket.exists():
            assert time.monotonic() < until, self._log()
            time.sleep(0.01)
        return process

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

    def _log(self) -> str:
        log = self.folder / "pgbouncer.log"
        return log.read_text() if log.exists() else "no log"


def pooled(driver: str, url: URL | str) -> URL:
    """Return a pooler's URL for another driver."""
    return make_url(url).set(drivername=f"postgresql+{driver}")
