"""A network namespace of a process's own, and the packets that get lost on its way."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path

PREFIX = "sqla-jobs-"
NAMES = Path("/run/netns")
NETWORKS = (
    16_384  # of two usable addresses each, in 198.18.0.0/16: for tests (RFC 2544)
)
OUT, IN = ("OUTPUT", "-o"), ("INPUT", "-i")
_numbers = count()


class Namespace:
    """
    A network of its own, joined to ours by a pair of virtual interfaces.

    Its name tells whose it is: `remove_stale` removes those of dead processes.

    Raises:
        subprocess.CalledProcessError: If this machine does not let us make one.
    """

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"{PREFIX}{os.getpid()}-{number}"
        self._link = f"sj{os.getpid()}h{number}"
        self._inner = f"sj{os.getpid()}n{number}"
        block = (os.getpid() * 8 + number) % NETWORKS * 4
        self.host, self.address = (
            f"198.18.{(block + n) >> 8}.{(block + n) & 255}" for n in (1, 2)
        )
        self.prefix = ("ip", "netns", "exec", self.name)
        _run("ip", "netns", "add", self.name)
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        ours, theirs = self._link, self._inner
        inside = ("ip", "-n", self.name)
        _run(
            *("ip", "link", "add", ours, "type", "veth"),
            *("peer", "name", theirs, "netns", self.name),
        )
        _run("ip", "addr", "add", f"{self.host}/30", "dev", ours)
        _run("ip", "link", "set", ours, "up")
        _run(*inside, "addr", "add", f"{self.address}/30", "dev", theirs)
        _run(*inside, "link", "set", theirs, "up")
        _run(*inside, "link", "set", "lo", "up")

    def drop(self, *ways: tuple[str, str]) -> None:
        """Lose all packets that go these ways, `OUT` or `IN`, from now on."""
        for chain, option in ways:
            self._filter("-A", chain, option, self._inner, "-j", "DROP")

    def heal(self) -> None:
        """Lose none."""
        self._filter("-F")

    def _filter(self, *arguments: str) -> None:
        _run(*self.prefix, "iptables", "-w", *arguments)

    def close(self) -> None:
        """Remove it; processes in it are cut off."""
        _remove(self.name, self._link)


def _remove(name: str, link: str) -> None:
    # The link first: a process that still runs there would keep it.
    for command in (("ip", "link", "del", link), ("ip", "netns", "del", name)):
        with suppress(subprocess.CalledProcessError):
            _run(*command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def remove_stale() -> list[str]:
    """Remove what processes that are dead have left; return the names."""
    found = []
    for path in NAMES.glob(f"{PREFIX}*-*"):
        pid, number = path.name.removeprefix(PREFIX).split("-")
        if not Path(f"/proc/{pid}").exists():
            _remove(path.name, f"sj{pid}h{number}")
            found.append(path.name)
    return found


@cache
def why_no_namespace() -> str | None:
    """Return why this machine lets us make none; None if it does."""
    if missing := _missing(("ip", "iptables")):
        return f"needs {missing}"
    if os.geteuid() != 0:
        return "needs root, to make a network namespace"
    try:
        tried = Namespace()
    except subprocess.CalledProcessError as exc:
        return f"cannot make a network namespace: {exc.stderr.decode().strip()}"
    try:
        tried.drop(OUT, IN)
    except subprocess.CalledProcessError as exc:
        return f"cannot drop packets: {exc.stderr.decode().strip()}"
    finally:
        tried.close()
    return None


def _missing(programs: Sequence[str]) -> str | None:
    return next((name for name in programs if shutil.which(name) is None), None)
