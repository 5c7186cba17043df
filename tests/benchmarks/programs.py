"""Programs of systems as processes: started, told to go, listened to, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import psutil

from tests.benchmarks.environments import module_of
from tests.benchmarks.server import cpu_of
from tests.benchmarks.systems.program import MARK, Options

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
ANSWER_SECONDS = 300.0


class Failed(Exception):
    """A program ended, or did not do what it should."""


class Program:
    """
    One process of a system; ended, with its children, at the end of the context.

    Args:
        python: Of the system's environment.
        system: Its name.
        command: What to do; a method of `systems.program.System`.
        options: How.
        log: File that gets what it writes to stderr.
    """

    def __init__(
        self,
        python: Path,
        system: str,
        command: str,
        options: Options | None,
        *,
        log: Path,
    ) -> None:
        self.name, self._log = f"{system} {command}", log
        told = json.dumps(asdict(options)) if options else "{}"
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", module_of(system), command, told],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=_environment(),
                start_new_session=True,
            )
        self._said: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._said.put(json.loads(line.removeprefix(MARK)))
        self._said.put(Failed)

    def answer(self, seconds: float = ANSWER_SECONDS) -> Any:
        """
        Return what it says next.

        Raises:
            Failed: If it ends instead, or takes longer than *seconds*.
        """
        try:
            said = self._said.get(timeout=seconds)
        except Empty:
            raise self.failure(f"did not answer within {seconds:.0f} s") from None
        if said is Failed:
            raise self.failure("ended")
        return said

    def ready(self) -> Self:
        """Wait until it says that it is ready."""
        said = self.answer(START_SECONDS)
        if said != "ready":
            raise self.failure(f"said {said!r}, not that it is ready")
        return self

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """
        Look whether it lives, or has done all it had to.

        Raises:
            Failed: If it ended with an error.
        """
        if self._process.poll():
            raise self.failure(f"ended with status {self._process.returncode}")

    def failure(self, what: str) -> Failed:
        """Return an error that ends with what the program wrote last."""
        written = self._log.read_text(errors="replace").strip()
        return Failed(f"{self.name} {what}\n{written[-1500:]}".strip())

    def cpu(self) -> float:
        """Return its CPU seconds, with its children's."""
        with suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            return sum(map(cpu_of, [process, *process.children(recursive=True)]))
        return 0.0

    def memory(self) -> int:
        """Return the bytes of memory it has, without its children's."""
        with suppress(psutil.Error):
            return int(psutil.Process(self._process.pid).memory_info().rss)
        return 0

    def wait(self, seconds: float = 10.0) -> None:
        """Wait until it has ended by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> None:
        """End it and its children at once."""
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()


def poll(deadline: float, seconds: float = 0.005) -> bool:
    """Wait a little; return whether *deadline*, of the monotonic clock, is not over."""
    time.sleep(seconds)
    return time.monotonic() < deadline


def _environment() -> dict[str, str]:
    """Return a program's variables; with bytecode, or it would compile meanwhile."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT)}
