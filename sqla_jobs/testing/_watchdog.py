"""
Wait until the owner of a throw-away PostgreSQL server is gone, then clean up.

A script, run by its path in an interpreter of its own; it imports only the standard
library. Standard input is a pipe from the owner: it brings the path of ``pg_ctl`` in
one line, and ends when the owner stops the server or ends itself, however that is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 5


def main(folder: Path, data: Path, *ids: str) -> int:
    """Guard *folder*; the server on *data* runs as user and group *ids*, or as we."""
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    pg_ctl = os.fsdecode(sys.stdin.buffer.readline().rstrip(b"\n"))
    sys.stdin.buffer.read()
    if pg_ctl:
        stop(pg_ctl, data, *map(int, ids))
    return 0 if remove(folder) else 1


def stop(pg_ctl: str, data: Path, user: int | None = None, *groups: int) -> None:
    """Stop the server at once; its data is not needed any more."""
    command = [pg_ctl, "stop", "-D", str(data), "-m", "immediate", "-w", "-s"]
    if user is None:
        subprocess.run(command, check=False)
    else:  # the server refuses root, and so does pg_ctl
        (group,) = groups
        subprocess.run(command, check=False, user=user, group=group, extra_groups=[])


def remove(folder: Path) -> bool:
    """Delete *folder*, while a dying program may still write there."""
    for _ in range(ROUNDS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return True
        time.sleep(1)
    return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
