"""Python environments of the peers, made on first use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

PINNED = {
    "pgqueuer": ("pgqueuer==1.6.0", "asyncpg==0.32.0"),
    "procrastinate": ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"),
    "oban": ("oban==0.7.0", "psycopg[binary,pool]==3.3.9"),
    "chancy": ("chancy==0.26.0", "psycopg[binary,pool]==3.3.9"),
    "saq": ("saq[postgres]==0.26.4", "psycopg[binary,pool]==3.3.9"),
}
"""The peers, each with its driver. All get the SQLAlchemy that measures them."""
COMMON = ("greenlet",) if os.name == "nt" else ("greenlet", "uvloop==0.23.0")
OWN = ("sqla_jobs", "raw", "bare")
"""Systems that run in the environment that measures."""
MODULE = {"sqla_jobs": "ours", "raw": "raw", "bare": "bare"}


class NotInstalled(Exception):
    """A system's environment could not be made."""


def module_of(system: str) -> str:
    """Return the module of the program that is *system*."""
    name = MODULE.get(system, f"peer_{system}")
    return f"tests.benchmarks.systems.{name}"


@dataclass
class Environments:
    """
    Pythons by system.

    Args:
        folder: Where the environments are kept from one run to the next.
    """

    folder: Path
    failed: dict[str, str] = field(default_factory=dict)

    def python(self, system: str) -> Path:
        """
        Return the Python of *system*; installs it on first use.

        Raises:
            NotInstalled: If that fails, and each time after.
        """
        if system in OWN:
            return Path(sys.executable)
        if system in self.failed:
            raise NotInstalled(self.failed[system])
        try:
            return self._made(system)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            self.failed[system] = f"{system} was not installed: {said.strip()[-600:]}"
            raise NotInstalled(self.failed[system]) from error

    def _made(self, system: str) -> Path:
        wanted = (*PINNED[system], *COMMON, f"sqlalchemy=={version('sqlalchemy')}")
        stamp = sha256("\n".join((sys.version, *wanted)).encode()).hexdigest()[:8]
        home = self.folder / f"{system}-{stamp}"
        python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
        done = home / "complete"
        if not done.exists():
            for command in commands(home, python, wanted):
                install(command)
            done.write_text("\n".join(wanted))
        return python


def commands(home: Path, python: Path, wanted: tuple[str, ...]) -> list[list[str]]:
    """Return what makes an environment: uv's commands where it is there, else pip's."""
    uv = shutil.which("uv")
    if uv is None:
        make = [sys.executable, "-m", "venv", "--clear", str(home)]
        return [make, [str(python), "-m", "pip", "install", "-q", *wanted]]
    make = [uv, "venv", "-q", "--clear", "--python", sys.executable, str(home)]
    return [make, [uv, "pip", "install", "-q", "--python", str(python), *wanted]]


def install(command: list[str]) -> None:
    """Run *command*, trusting whom the system trusts."""
    trust = {"UV_SYSTEM_CERTS": "true", "UV_NATIVE_TLS": "true"}
    environment = {**os.environ, **trust}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
