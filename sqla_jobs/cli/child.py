"""What a process that a supervisor started does beyond running jobs."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqla_jobs.runner.signals import stop_loop_on_signals, stop_on_signals

VARIABLE = "_SQLA_JOBS_CHILD"


@dataclass
class Child:
    """
    The link to the supervisor: a socket, whose end is the supervisor's end.

    SIGTERM and SIGINT stop a child gracefully however often they come: a terminal and
    a service manager send them to the children too, and the supervisor passes them on.
    SIGQUIT, from the supervisor, is the second signal.
    """

    number: int | None
    """Which child it is, from 1; None for the only one."""
    link: socket.socket

    def name(self, name: str) -> str:
        """Return a runner's name, different in each child."""
        return name if self.number is None else f"{name}-{self.number}"

    def ready(self, grace: float) -> None:
        """Tell the supervisor that the runner was loaded, and its grace in seconds."""
        self.link.sendall(json.dumps({"grace": grace}).encode() + b"\n")
        thread = threading.Thread(
            target=self._watch, name="sqla-jobs-supervisor", daemon=True
        )
        thread.start()

    def _watch(self) -> None:
        with suppress(OSError):
            self.link.recv(1)  # nothing is ever sent
        os.kill(os.getpid(), signal.SIGTERM)


def child_of_environment() -> Child | None:
    """Return the link if a supervisor started this process, and forget how."""
    # Programs that jobs start are no children of the supervisor.
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    given = json.loads(text)
    link = socket.socket(fileno=given["link"])
    link.set_inheritable(False)
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    return Child(given["number"], link)


@contextmanager
def signals_of_supervisor(runner: Any, *, in_loop: bool) -> Iterator[None]:
    """Make *runner*, about to run, take its signals as a child does."""
    signalled = runner._signalled
    # Outside a loop each has a thread of its own, and the first signal must be
    # done with before the second.
    one_by_one = threading.RLock()

    def stop() -> None:
        with one_by_one:
            if not runner._stopping:
                signalled()

    def force() -> None:
        with one_by_one:
            stop()
            signalled()

    runner._signalled = stop
    handling = stop_loop_on_signals if in_loop else stop_on_signals
    with handling(force, (signal.SIGQUIT,)):
        yield
