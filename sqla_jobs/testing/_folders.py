"""Where a throw-away server's files go, and whose they are."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqla_jobs.errors import PostgresServerError

PREFIX = "sqla-jobs-pg-"
SOCKET_BYTES = 103  # the longest path of a unix socket on macOS; Linux allows 107


@dataclass(frozen=True)
class Identity:
    """Whose the server's processes are; None is ourselves."""

    user: int | None = None
    group: int | None = None

    def own(self, path: Path) -> None:
        """Give a file or folder to this user."""
        if self.user is not None and self.group is not None:
            os.chown(path, self.user, self.group)


def server_identity() -> Identity:
    """
    Return who runs the server: ourselves, or somebody unprivileged if we are root.

    Raises:
        PostgresServerError: If we are root and know no other user.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return Identity()
    import pwd

    # initdb looks its user up, so a number without an account would not do.
    users = sorted((u for u in pwd.getpwall() if u.pw_uid), key=lambda u: u.pw_uid)
    for user in sorted(users, key=lambda u: u.pw_name != "nobody"):
        return Identity(user.pw_uid, user.pw_gid)
    raise PostgresServerError(
        "PostgreSQL cannot run as root, and this machine has no other user;"
        " create one, or run as another user"
    )


def make_folder(identity: Identity) -> Path:
    """
    Make a new folder of ours that the server's user can pass through.

    Raises:
        PostgresServerError: If no temporary folder of the system will do.
    """
    parents = dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp"))
    for parent in map(Path, parents):
        if _socket_fits(parent) and _usable(parent, identity):
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
            folder.chmod(0o700 if identity.user is None else 0o711)
            return folder
    raise PostgresServerError(
        f"none of {', '.join(parents)} can hold a server's folder: it must be short"
        " enough for a unix socket and open to the server's user; set TMPDIR"
    )


def _socket_fits(parent: Path) -> bool:
    longest = parent.resolve() / f"{PREFIX}12345678" / "pg" / ".s.PGSQL.5432"
    return len(os.fsencode(longest)) <= SOCKET_BYTES


def _usable(parent: Path, identity: Identity) -> bool:
    path = parent.resolve()
    if not os.access(path, os.W_OK | os.X_OK):
        return False
    passed = () if identity.user is None else (path, *path.parents)
    return all(folder.stat().st_mode & 0o001 for folder in passed)
