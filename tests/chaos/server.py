"""The bank's own PostgreSQL server, which can be killed and comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from sqla_jobs.errors import PostgresServerError
from sqla_jobs.testing._cluster import Cluster

SETTINGS = {
    # A process is killed, not the machine: what was written stays without fsync.
    "fsync": "off",
    "synchronous_commit": "on",
    "max_connections": "200",
    "deadlock_timeout": "'50ms'",
    "log_line_prefix": "'%m [%p] '",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
PATIENCE = 60.0


class Server(Cluster):
    """A PostgreSQL server on a unix socket, with data that survive its death."""

    def __init__(self) -> None:
        super().__init__()
        self._settings: Mapping[str, str] = {}
        self.dsn = ""

    def open(self) -> None:
        """Make the data and start the server."""
        self.dsn = self.start(SETTINGS)

    @property
    def socket(self) -> str:
        """The path of the unix socket it listens on."""
        return str(self._home / ".s.PGSQL.5432")

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    @property
    def log(self) -> str:
        """All that the server has written to its log."""
        return self._log.read_text(errors="replace")

    def crash(self) -> None:
        """Kill the postmaster with SIGKILL; its backends see that and end too."""
        postmaster = self.pid
        family = [*_children(postmaster), postmaster]
        os.kill(postmaster, signal.SIGKILL)
        # A new server beside backends of the old one would spoil the data.
        until = time.monotonic() + PATIENCE
        while any(map(_lives, family)):
            if time.monotonic() > until:
                raise PostgresServerError(f"backends of {postmaster} do not end")
            time.sleep(0.01)
        # Where nobody reaps it, the dead postmaster looks alive to the next one.
        for lock in (self._data / "postmaster.pid", Path(f"{self.socket}.lock")):
            lock.unlink(missing_ok=True)

    def restart(self) -> None:
        """Start the server again on its data; return when it takes connections."""
        super()._launch(self._settings)

    def _launch(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        super()._launch(settings)


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
