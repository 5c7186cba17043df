"""The processes of one throw-away PostgreSQL server, and their end."""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from sqla_jobs.errors import PostgresServerError
from sqla_jobs.testing import _binaries, _folders

HAS_SOCKETS = os.name == "posix" and hasattr(socket, "AF_UNIX")
START_SECONDS = 60
STOP_SECONDS = 60
LOG_LINES = 20

WATCHDOG = Path(__file__).with_name("_watchdog.py")


@dataclass(frozen=True)
class Address:
    """Where a server listens, and how clients get in."""

    dsn: str
    settings: dict[str, str]
    password: str | None = None


class Cluster:
    """
    A server's folder with everything in it, guarded by a watchdog process.

    Raises:
        PostgresServerError: If there is no PostgreSQL, or no folder for it.
    """

    def __init__(self) -> None:
        self._identity = _folders.server_identity()
        self._programs = _binaries.find_binaries()
        # Ours: the server's user writes only below `home`, which is its own.
        self.folder = _folders.make_folder(self._identity)
        self._home, self._data = self.folder / "pg", self.folder / "pg" / "data"
        self._log = self._home / "server.log"
        # Before all the rest: a kill from here on leaves nothing behind.
        self._watchdog = self._watch()
        _clusters.add(self)

    def start(self, settings: Mapping[str, str]) -> str:
        """Make the data, start the server, and return its SQLAlchemy URL."""
        self._settle_programs()
        self._home.mkdir(0o700)
        self._identity.own(self._home)
        address = _socket_address(self._home) if HAS_SOCKETS else _loopback_address()
        self._initialise(address.password)
        self._launch({**settings, **address.settings})
        return address.dsn

    def close(self) -> None:
        """Stop the server and delete the folder; a second time nothing happens."""
        pipe = self._pipe
        if not pipe.closed:
            pipe.close()
            self._watchdog.wait(STOP_SECONDS)

    def disown(self) -> None:
        """Leave the server to the process that we were forked from."""
        self._pipe.close()
        self._watchdog.returncode = 0  # not our child: neither wait nor warn

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._watchdog.stdin is not None
        return self._watchdog.stdin

    def _watch(self) -> subprocess.Popen[bytes]:
        # The pipe's end is not inheritable, so programs that the owner starts do not
        # hold it open; for processes it forks there is `disown`. A session of its own
        # keeps the watchdog out of the reach of Ctrl-C.
        who = self._identity
        ids = [] if who.user is None else [who.user, who.group]
        arguments = [WATCHDOG, self.folder, self._data, *ids]
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.folder.parent,
                env=_environment(),
                start_new_session=True,
            )
        except OSError:
            self.folder.rmdir()
            raise

    def _settle_programs(self) -> None:
        """Make sure that the server's user can execute the programs."""
        if not self._executable() and self._programs == _binaries.wheel_programs():
            copy = self.folder / "programs"
            self._programs = _binaries.copy_wheel(self._programs, copy)
        if not self._executable():
            user = "" if self._identity.user is None else f" as {self._identity}"
            raise PostgresServerError(
                f"cannot run the programs in {self._programs}{user}"
            )
        self._pipe.write(os.fsencode(self._programs / "pg_ctl") + b"\n")
        self._pipe.flush()

    def _executable(self) -> bool:
        try:
            return self._run("postgres", "--version") == 0
        except PermissionError:
            return False

    def _initialise(self, password: str | None) -> None:
        options = ["--auth-local=trust", "--auth-host=reject"]
        if password is not None:
            secret = self.folder / "password"
            secret.write_text(password)
            secret.chmod(0o600)
            self._identity.own(secret)
            options = ["--auth=scram-sha-256", f"--pwfile={secret}"]
        data = f"--pgdata={self._data}"
        plain = ["--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]
        if self._run("initdb", data, *plain, *options):
            raise PostgresServerError(f"initdb failed:\n{self._log_tail()}")

    def _launch(self, settings: Mapping[str, str]) -> None:
        config = self.folder / "settings.conf"
        lines = [f"include '{self._data.as_posix()}/postgresql.conf'"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o644)  # the server's user reads it
        options = f"-c config_file={_quoted(config.as_posix())}"
        patience = ["-w", "-t", str(START_SECONDS), "-s"]
        files = ["-D", str(self._data), "-l", str(self._log)]
        if self._run("pg_ctl", "start", *files, *patience, "-o", options):
            raise PostgresServerError(
                f"PostgreSQL did not start; its log ends:\n{self._log_tail()}"
            )

    def _run(self, program: str, *arguments: str) -> int:
        # Into a file: a pipe would stay open for as long as the server does.
        with (self.folder / "programs.log").open("ab") as log:
            return subprocess.run(
                [str(self._programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=_environment(),
                check=False,
                user=self._identity.user,
                group=self._identity.group,
                extra_groups=None if self._identity.user is None else [],
            ).returncode

    def _log_tail(self) -> str:
        log = self._log if self._log.exists() else self.folder / "programs.log"
        lines = log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


def _socket_address(home: Path) -> Address:
    settings = {"listen_addresses": "''", "port": "5432"}
    settings["unix_socket_directories"] = f"'{home}'"
    dsn = f"postgresql+psycopg://postgres@/postgres?host={quote(str(home))}"
    return Address(dsn, settings)


def _loopback_address() -> Address:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = secrets.token_hex(16)
    settings = {"listen_addresses": "'127.0.0.1'", "port": str(port)}
    if os.name == "posix":
        settings["unix_socket_directories"] = "''"
    dsn = f"postgresql+psycopg://postgres:{password}@127.0.0.1:{port}/postgres"
    return Address(dsn, settings, password)


def _environment() -> dict[str, str]:
    # PGPORT, PGDATA and their like would reach the server.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    return {**kept, "LC_ALL": "C"}


def _quoted(path: str) -> str:
    return shlex.quote(path) if os.name == "posix" else f'"{path}"'


_clusters: weakref.WeakSet[Cluster] = weakref.WeakSet()


def _disown_all() -> None:
    for cluster in list(_clusters):
        cluster.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
