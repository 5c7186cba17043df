"""Where a throw-away server's files go, and whose they are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TypedDict

from sqla_jobs.errors import PostgresServerError

PREFIX = "sqla-jobs-pg-"
SOCKET_BYTES = 103  # the longest path of a unix socket on macOS; Linux allows 107


class Identity(TypedDict, total=False):
    """Options of `subprocess.Popen`: whose the process is; empty means ours."""

    user: int
    group: int
    extra_groups: list[int]


def server_identity() -> Identity:
    """
    Return who runs the server: ourselves, or somebody unprivileged if we are root.

    Raises:
        PostgresServerError: If we are root and know no other user.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return {}
    import pwd

    # initdb looks its user up, so a number without an account would not do.
    users = sorted((u for u in pwd.getpwall() if u.pw_uid), key=lambda u: u.pw_uid)
    for user in sorted(users, key=lambda u: u.pw_name != "nobody"):
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise PostgresServerError(
        "PostgreSQL cannot run as root, and this machine has no other user;"
        " create one, or run as another user"
    )


def make_folder(identity: Identity) -> Path:
    """
    Make a new folder that only this user may enter, and return it.

    Raises:
        PostgresServerError: If no temporary folder of the system will do.
    """
    parents = dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp"))
    for parent in map(Path, parents):
        if parent.is_dir() and _socket_fits(parent) and _usable(parent, identity):
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
            if "user" in identity:
                os.chown(folder, identity["user"], identity.get("group", -1))
            return folder
    raise PostgresServerError(
        f"none of {', '.join(parents)} can hold a server's folder: it must be short"
        " enough for a unix socket and, for root, writable by every user; set TMPDIR"
    )


def _socket_fits(parent: Path) -> bool:
    longest = parent.resolve() / f"{PREFIX}12345678" / ".s.PGSQL.5432.lock"
    return len(os.fsencode(longest)) <= SOCKET_BYTES


def _usable(parent: Path, identity: Identity) -> bool:
    if not identity:
        return os.access(parent, os.W_OK | os.X_OK)
    # The server's user deletes the folder at the end, so it must be able to write.
    path = parent.resolve()
    entered = all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
    return entered and bool(path.stat().st_mode & 0o002)
