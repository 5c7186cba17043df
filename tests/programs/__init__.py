"""Python programs for tests, forked from a process that has imported already."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = ("python", "alembic", "sqla-jobs")


class Programs:
    """
    Starts of programs that cost no imports; see the files beside this one.

    A program is the child of the client: its process id is another, and what is
    not passed on is SIGSTOP. Tests of those start `sys.executable` themselves.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def python(self) -> list[str]:
        """What to write for `sys.executable`; behind it -m, -c or a file."""
        if not hasattr(os, "pidfd_open"):
            return [sys.executable]
        socket = str(self.folder / "server")
        if self._server is None:
            command = [sys.executable, str(HERE / "server.py"), socket]
            self._server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self._server.stdout is not None
            assert self._server.stdout.readline() == b"ready\n"
        return [sys.executable, "-IS", str(HERE / "client.py"), socket]

    @property
    def path(self) -> Path:
        """A folder with python, alembic and sqla-jobs, for the variable PATH."""
        folder = self.folder / "bin"
        if not folder.exists():
            folder.mkdir()
            for name in SCRIPTS:
                script = Path(sys.executable).with_name(name)
                which = [] if name == "python" else [str(script)]
                command = shlex.join([*self.python, *which])
                (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
                (folder / name).chmod(0o755)
        return folder

    def close(self) -> None:
        """End the server; programs that run still run on."""
        if self._server is not None:
            self._server.communicate()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Yield the starts of programs of this test process."""
    programs = Programs(tmp_path_factory.mktemp("programs"))
    yield programs
    programs.close()
