"""What the demonstration shows: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

LINE_SECONDS = 2.0  # between plain lines

STATES = ("available", "running", "scheduled", "retryable", "completed", "discarded")


@dataclass
class Snapshot:
    """How many jobs are in each state, and how often one was rescued."""

    states: dict[str, int] = field(default_factory=dict)
    rescued: int = 0

    @property
    def total(self) -> int:
        """All jobs."""
        return sum(self.states.values())

    @property
    def done(self) -> int:
        """Jobs that will not run again."""
        final = ("completed", "cancelled", "discarded")
        return sum(self.states.get(state, 0) for state in final)

    def __str__(self) -> str:
        parts = [f"{self.states[s]} {s}" for s in STATES if self.states.get(s)]
        return ", ".join([*parts, f"{self.rescued} rescued"])


class Screen:
    """Prints lines, and in between shows the jobs by state."""

    def __init__(self, total: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        bar, count = BarColumn(30), MofNCompleteColumn()
        text = TextColumn("{task.description}")
        self._bar = Progress(bar, count, Elapsed(), text, console=self.console)
        self._task = self._bar.add_task("", start=False, total=total)
        self._line_at = 0.0
        self._last = ""

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    def show(self, jobs: Snapshot) -> None:
        """Show how far the jobs are."""
        text = str(jobs)
        if self.console.is_terminal:
            self._bar.update(self._task, completed=jobs.done, description=text)
        elif text != self._last and time.monotonic() > self._line_at:
            self._line_at = time.monotonic() + LINE_SECONDS
            self.say(f"  {text}")
        self._last = text

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start_task(self._task)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()
