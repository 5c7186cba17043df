"""The demonstration's runner processes: started, killed in the middle, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

STOP_SECONDS = 10


class WorkerDied(Exception):
    """A worker ended that nobody had killed."""


class Workers:
    """
    Processes that run the jobs of the database at *dsn*.

    They are `worker.py`, and end with this process however it ends: each reads a pipe
    whose other end is here.
    """

    def __init__(self, dsn: str, logs: Path) -> None:
        self._environment = {**os.environ, "CODE_INDEX_DSN": dsn}
        self._logs = logs
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> int:
        """Start a worker and return its process id."""
        number = len(list(self._logs.iterdir())) + 1
        with (self._logs / f"{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, __file__],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which stops them
            )
        self._processes[process.pid] = process
        return process.pid

    def check(self) -> None:
        """Raise WorkerDied if a worker ended by itself."""
        for pid, process in self._processes.items():
            if process.poll() is not None:
                raise WorkerDied(f"worker {pid} ended with {process.returncode}")

    @contextmanager
    def frozen(self, pid: int) -> Iterator[None]:
        """Stop the process from doing anything, where the system can."""
        stops = hasattr(signal, "SIGSTOP")
        if stops:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if stops and pid in self._processes:
                os.kill(pid, signal.SIGCONT)

    def kill(self, pid: int) -> None:
        """End the process at once, with SIGKILL: it cannot clean up."""
        with self._processes.pop(pid) as process:
            process.kill()

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of all logs."""
        paths = sorted(self._logs.iterdir())
        logs = [path.read_text(errors="replace").splitlines() for path in paths]
        return "\n".join(line for log in logs for line in log[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for pid, process in [*self._processes.items()]:
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            self.kill(pid)


def end_with_parent() -> None:
    """End this process when the parent has ended."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    import logging

    from worker import make_runner

    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    make_runner().run()
