"""What goes wrong in the bank: faults of processes and of the server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.chaos.scene import GRACE, LEASE, POLL, Direct, Handover, Held, Scene, Worker

WATCH = 0.02  # seconds between looks
BUSY = 2.0  # seconds to wait for a worker to hold a job


class Nemesis(Protocol):
    """
    A fault.

    One that needs a way of its own to the server has ``routes``, a list of `Route`
    objects: each gets a worker. Nemeses may share a route, as the same object.
    """

    name: str

    def why_not(self, scene: Scene) -> str | None:
        """Return why it cannot strike on this machine; None if it can."""

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Do harm; return when that is over and healed. *rng* makes all choices."""

    def heal(self) -> None:
        """Undo all that may be left; any number of times, also without a strike."""


class _Plain:
    """A nemesis that works everywhere and leaves nothing behind."""

    def why_not(self, scene: Scene) -> str | None:
        """It can always strike."""
        return None

    def heal(self) -> None:
        """Nothing is left."""


def victim(scene: Scene, rng: random.Random, *, busy: bool = True) -> Worker:
    """
    Return a worker, once its runner works; those of other nemeses are spared.

    It gets a while to claim something if it shall be *busy*, else to finish all.
    """
    own = [one for one in scene.workers if isinstance(one.route, Direct)]
    worker = rng.choice(own or scene.workers)
    worker.await_ready()
    until = time.monotonic() + BUSY
    with suppress(DBAPIError):
        while bool(scene.held_by(worker)) is not busy and time.monotonic() < until:
            time.sleep(WATCH)
    return worker


class Sigkill(_Plain):
    """Ends a worker's process."""

    name = "sigkill"

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Kill it and note what it held."""
        worker = victim(scene, rng)
        runner, name = worker.runner_id, worker.runner_name
        with scene.keeping:
            at = time.monotonic()
            worker.kill()
            held = set(scene.held_by(worker))
            # A claim may be on its way: its backend does not know yet.
            time.sleep(0.1)
            held |= set(scene.held_by(worker))
            scene.hit(worker, sorted(held, key=lambda one: one.job), at)
        scene.note(f"{name} (runner {runner}) killed, it held {len(held)}")
        time.sleep(LEASE + POLL)


class Sigstop(_Plain):
    """Stops a worker's process for longer than its leases, then lets it go on."""

    name = "sigstop"

    def __init__(self) -> None:
        self._stopped: int | None = None

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Stop it until others have taken over, and wake it up."""
        worker = victim(scene, rng)
        self._stopped = worker.process.pid
        worker.signal(signal.SIGSTOP)
        scene.hit(worker, scene.held_by(worker))
        time.sleep(LEASE + POLL + rng.uniform(0.5, 2.0))
        self.heal()

    def heal(self) -> None:
        """Wake it up."""
        if self._stopped is not None:
            with suppress(ProcessLookupError):
                os.kill(self._stopped, signal.SIGCONT)
            self._stopped = None


class Sigterm(_Plain):
    """Asks a worker to end, as a deployment does."""

    name = "sigterm"

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Send the signal and watch until the process has handed over and ended."""
        worker = victim(scene, rng, busy=rng.random() < 0.7)
        held = {one.job: one for one in scene.held_by(worker)}
        with scene.keeping:
            at = time.monotonic()
            scene.hit(worker, list(held.values()), at)
            worker.signal(signal.SIGTERM)
            self._watch(scene, worker, held, at)
        ended = time.monotonic() - at
        scene.note(f"{worker.runner_name} ended in {ended:.2f} s, had {len(held)}")

    def _watch(
        self, scene: Scene, worker: Worker, held: dict[int, Held], at: float
    ) -> None:
        idle = not held
        until = at + GRACE + 10
        while held and worker.alive and time.monotonic() < until:
            time.sleep(WATCH)
            with suppress(DBAPIError):  # another nemesis is at the server
                self._look(scene, worker, held, at)
        ended = worker.await_bye(at, until - time.monotonic())
        if idle and ended is not None:
            scene.handovers.append(Handover("idle", at, ended - at))
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(GRACE)

    def _look(
        self, scene: Scene, worker: Worker, held: dict[int, Held], at: float
    ) -> None:
        still = {one.job: one for one in scene.held_by(worker)}
        now = time.monotonic()
        for one in [one for job, one in held.items() if job not in still]:
            scene.handovers.append(Handover(one.kind, at, now - at))
            del held[one.job]


class TerminateBackends(_Plain):
    """Ends connections at the server, some or all of them."""

    name = "terminate_backends"

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """End them several times in a row."""
        share = rng.choice([0.3, 1.0])
        stmt = text(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND datname = current_database()"
            " AND application_name <> 'referee' AND random() < :share"
        )
        for worker in scene.workers:
            scene.hit(worker, scene.held_by(worker))
        for _ in range(rng.randint(1, 4)):
            with scene.engine.connect() as connection:
                count = connection.scalar(stmt, {"share": share})
            scene.note(f"{count} connections ended")
            time.sleep(rng.uniform(0.1, 0.6))


class KillPostmaster(_Plain):
    """Kills the server, which recovers from its log when it starts again."""

    name = "kill_postmaster"

    def __init__(self) -> None:
        self._scene: Scene | None = None

    def why_not(self, scene: Scene) -> str | None:
        """It must find the server's processes."""
        return None if Path("/proc/self/stat").exists() else "needs /proc"

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Kill the server and start it again after a while."""
        self._scene = scene
        for worker in scene.workers:
            scene.hit(worker, scene.held_by(worker))
        scene.server.crash()
        time.sleep(rng.uniform(0.1, 2.0))
        self.heal()

    def heal(self) -> None:
        """Start the server."""
        if self._scene is not None:
            self._scene.server.restart()
            self._scene = None


class Snapshot(_Plain):
    """Holds a snapshot, so that no dead row can be removed."""

    name = "snapshot"

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Hold it for several leases."""
        engine = scene.engine.execution_options(isolation_level="REPEATABLE READ")
        with engine.connect() as connection:
            connection.execute(text("SELECT count(*) FROM jobs"))
            time.sleep(rng.uniform(LEASE, 2 * LEASE))


NEMESES: dict[str, Callable[[], Nemesis]] = {
    cls.name: cls
    for cls in (
        Sigkill, Sigstop, Sigterm, TerminateBackends, KillPostmaster, Snapshot,
    )
}  # fmt: skip
"""What makes each nemesis of this module, by its name."""
