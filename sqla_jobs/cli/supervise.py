"""A supervisor: starts children of the same command, restarts them, stops them."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType

from sqla_jobs.cli.child import VARIABLE
from sqla_jobs.cli.logs import set_up_logging
from sqla_jobs.cli.reload import changes
from sqla_jobs.cli.run import RunSettings
from sqla_jobs.cli.slots import Slot, ending, exit_status, hopeless

log = logging.getLogger("sqla_jobs")
SLACK = 10.0  # seconds beyond the grace until a child is killed
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


@dataclass(frozen=True)
class Ready:
    """A child has loaded its runner."""

    slot: Slot
    process: subprocess.Popen[bytes]
    grace: float


@dataclass(frozen=True)
class Ended:
    """A child has ended, with a negative status by a signal."""

    slot: Slot
    status: int


@dataclass(frozen=True)
class Signalled:
    """The supervisor got a signal."""

    number: int


@dataclass(frozen=True)
class Changed:
    """Files of the application have changed."""

    paths: list[str]


Event = Ready | Ended | Signalled | Changed


def supervise(settings: RunSettings) -> int:
    """Run the children until they are done or stopped; return the exit status."""
    set_up_logging(settings.log_level, settings.log_format)
    return Supervisor(settings).run()


class Supervisor:
    """Waits for events and acts on them; threads only report."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.slots = [Slot(number + 1) for number in range(settings.processes)]
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._signals_seen = 0
        self._worst = 0
        self._proven = self._stopping = False

    def run(self) -> int:
        """Supervise until all is done; return the worst exit status of a child."""
        for slot in self.slots:
            slot.start_at = 0.0
        with self._handled_signals(), self._watched_files():
            while not self._over():
                now = time.monotonic()
                self._act(now)
                event = self._next_event(now)
                if event is not None:
                    self._handle(event, time.monotonic())
        return self._worst

    def _over(self) -> bool:
        if any(slot.process is not None for slot in self.slots):
            return False
        waiting = any(slot.start_at is not None for slot in self.slots)
        return self._stopping or not (waiting or self.settings.reload)

    def _act(self, now: float) -> None:
        """Start the children that are due, and kill those that are overdue."""
        for slot in self.slots:
            due = slot.start_at is not None and slot.start_at <= now
            # One alone first: a module that does not import is reported once.
            if due and not self._stopping and (self._proven or slot.number == 1):
                self._start(slot)
            if slot.process is not None and slot.kill_at <= now:
                log.error("supervisor: %s does not end: killing it", _child(slot))
                slot.kill_at = float("inf")
                slot.process.kill()

    def _next_event(self, now: float) -> Event | None:
        times = [slot.kill_at for slot in self.slots if slot.process is not None]
        if not self._stopping:
            ready = [slot for slot in self.slots if self._proven or slot.number == 1]
            times += [slot.start_at for slot in ready if slot.start_at is not None]
        pause = min(times, default=float("inf")) - now
        try:
            return self._events.get(timeout=max(0.0, min(pause, 3600.0)))
        except Empty:
            return None

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case Ready():
                self._is_ready(event, now)
            case Ended():
                self._has_ended(event.slot, event.status, now)
            case Signalled(number=number):
                self._signalled(number, now)
            case Changed(paths=paths):
                if not self._stopping:
                    log.info("supervisor: %s changed", ", ".join(paths))
                    self._restart_all(now)

    # Children

    def _start(self, slot: Slot) -> None:
        ours, theirs = socket.socketpair()
        number = slot.number if len(self.slots) > 1 else None
        given = json.dumps({"number": number, "link": theirs.fileno()})
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - this very command
                [sys.executable, *sys.orig_argv[1:]],
                env={**os.environ, VARIABLE: given},
                pass_fds=[theirs.fileno()],
            )
        slot.started(process)
        log.info("supervisor: %s started", _child(slot))
        threading.Thread(
            target=self._follow, args=(slot, process, ours), daemon=True
        ).start()

    def _follow(
        self, slot: Slot, process: subprocess.Popen[bytes], link: socket.socket
    ) -> None:
        """Report what becomes of a child; in a thread of its own."""
        with link:
            line = link.makefile("rb").readline()
            if line:
                grace = json.loads(line)["grace"]
                self._events.put(Ready(slot, process, grace))
            status = process.wait()
        self._events.put(Ended(slot, status))

    def _is_ready(self, event: Ready, now: float) -> None:
        slot = event.slot
        if slot.process is event.process:
            slot.ready_at, slot.grace = now, event.grace
            self._proven = True

    def _has_ended(self, slot: Slot, status: int, now: float) -> None:
        child, asked = _child(slot), slot.replace or self._stopping
        pause = slot.ended(now, status)
        log.log(
            logging.INFO if asked or status == 0 else logging.ERROR,
            "supervisor: %s %s", child, ending(status),
        )  # fmt: skip
        if self._stopping:
            self._worst = max(self._worst, exit_status(status))
        elif slot.replace:
            slot.start_at, slot.quick = now, 0
        elif self.settings.reload:
            log.info("supervisor: waiting for a change")
        elif self.settings.burst:
            self._worst = max(self._worst, exit_status(status))
            if not self._proven:
                self._give_up(1)
        elif not self._proven and status >= 0:  # what one cannot load, no other can
            self._give_up(exit_status(status) or 1)
        else:
            self._again(slot, now, pause)

    def _again(self, slot: Slot, now: float, pause: float) -> None:
        if hopeless(self.slots, now):
            log.error("supervisor: giving up, the children end as soon as they start")
            self._give_up(1)
            return
        slot.start_at = now + pause
        when = f"in {pause:g} s" if pause else "now"
        log.warning("supervisor: starting child %s again %s", slot.number, when)

    def _give_up(self, status: int) -> None:
        self._worst = max(self._worst, status)
        self._stop_all(time.monotonic())

    # Stopping

    @contextmanager
    def _handled_signals(self) -> Iterator[None]:
        def handle(number: int, _frame: FrameType | None) -> None:
            self._events.put(Signalled(number))

        numbers = [signal.Signals[name] for name in SIGNALS]
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def _signalled(self, number: int, now: float) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP and not _on_terminal():
            log.info("supervisor: %s: restarting all children", name)
            self._restart_all(now)
            return
        self._signals_seen += 1
        if self._signals_seen == 1:
            log.info("supervisor: %s: stopping all children", name)
            self._stop_all(now)
        else:
            log.warning("supervisor: %s again: no time for running jobs", name)
            self._force_all(now)

    def _restart_all(self, now: float) -> None:
        if self._stopping:
            return
        for slot in self.slots:
            if slot.process is None:
                slot.start_at = now
            elif not slot.replace:
                slot.replace = True
                self._stop(slot, now)

    def _stop_all(self, now: float) -> None:
        self._stopping = True
        for slot in self.slots:
            if slot.process is not None and not slot.replace:
                self._stop(slot, now)

    def _stop(self, slot: Slot, now: float) -> None:
        slot.kill_at = now + slot.grace + SLACK
        slot.process.send_signal(signal.SIGTERM)

    def _force_all(self, now: float) -> None:
        for slot in self.slots:
            if slot.process is None:
                continue
            loaded = slot.ready_at is not None
            slot.process.send_signal(signal.SIGQUIT if loaded else signal.SIGKILL)
            slot.kill_at = min(slot.kill_at, now + SLACK)

    def _watched_files(self) -> AbstractContextManager[None]:
        if not self.settings.reload:
            return nullcontext()
        return changes(
            self.settings.folder, lambda paths: self._events.put(Changed(paths))
        )


def _child(slot: Slot) -> str:
    return f"child {slot.number} (process {slot.process.pid})"


def _on_terminal() -> bool:
    # Its end sends SIGHUP too, and wants everything to end.
    return any(os.isatty(number) for number in (0, 1, 2))
