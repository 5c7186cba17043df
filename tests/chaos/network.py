"""What goes wrong between the bank's workers and the server, and with their clocks."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.chaos.namespaces import IN, OUT, Namespace, remove_stale, why_no_namespace
from tests.chaos.nemesis import Nemesis
from tests.chaos.scene import LEASE, POLL, ROOT, Route, Scene, Worker
from tests.chaos.worker import POOLER
from tests.drivers.proxy import Proxy
from tests.pooler import pgbouncer

FAKETIME = "faketime/libfaketimeMT.so.1"
SKEWS = ("+10m", "-10m")


def faketime() -> Path | None:
    """Return the library that changes a process's clock, if it is here."""
    folders = ("lib*", "lib*/*")
    found = (one for f in folders for one in Path("/usr").glob(f"{f}/{FAKETIME}"))
    return next(found, None)


class _Route:
    """A way that needs nothing special of the worker."""

    name = ""
    driver: str | None = None
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = {}
    dsn = ""


class NamespaceRoute(_Route):
    """Out of a network namespace, to a proxy at our end of its only link."""

    name = "namespace"

    def open(self, scene: Scene) -> None:
        """Build the namespace and the proxy."""
        remove_stale()
        self.namespace = Namespace()
        self.prefix: Sequence[str] = self.namespace.prefix
        # The server listens on a unix socket only.
        self._proxy = Proxy(scene.server.dsn, host=self.namespace.host)
        self.dsn = self._proxy.dsn

    def heal(self) -> None:
        """Let all packets pass."""
        if hasattr(self, "namespace"):
            self.namespace.heal()

    def close(self) -> None:
        """Remove both."""
        if hasattr(self, "_proxy"):
            self._proxy.close()
        if hasattr(self, "namespace"):
            self.namespace.close()


class ProxyRoute(_Route):
    """Through a proxy that is slow, or loses answers, when told so."""

    name = "proxy"
    proxy: Proxy | None = None

    def open(self, scene: Scene) -> None:
        """Start the proxy."""
        self.proxy = Proxy(scene.server.dsn)
        self.dsn = self.proxy.dsn

    def heal(self) -> None:
        """Pass all on, at once."""
        if self.proxy is not None:
            self.proxy.delay = self.proxy.cut_after = None

    def close(self) -> None:
        """End the proxy."""
        if self.proxy is not None:
            self.proxy.close()


class PoolerRoute(_Route):
    """Through a PgBouncer in transaction mode."""

    name = "pooler"
    environment: Mapping[str, str] = {POOLER: "1"}
    pooler: pgbouncer.PgBouncer | None = None

    def open(self, scene: Scene) -> None:
        """Start the pooler."""
        self.pooler = pgbouncer.PgBouncer(scene.server.dsn)
        self.dsn = self.pooler.dsn

    def close(self) -> None:
        """End the pooler."""
        if self.pooler is not None:
            self.pooler.close()


class SkewedRoute(_Route):
    """The server's own socket, in a process whose clock we set."""

    name = "skewed"
    _file: Path | None = None

    def open(self, scene: Scene) -> None:
        """Start with the right time."""
        self.dsn = scene.server.dsn
        self._file = scene.server.folder / "clock"
        self.set("+0")
        # The library and not its command, whose child SIGKILL would leave alone.
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            # No host's clock changes that one.
            "DONT_FAKE_MONOTONIC": "1",
            # With its "fix" threads that compete for the interpreter hardly get it.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "PYTHONPATH": os.pathsep.join((f"{ROOT}/tests/chaos/skewed", str(ROOT))),
        }

    def set(self, skew: str) -> None:
        """Let the clock differ from the true one, by "+10m" or the like."""
        if self._file is not None:
            new = self._file.with_suffix(".new")
            new.write_text(skew)
            new.replace(self._file)

    def close(self) -> None:
        """Nothing is left: the file is in the server's folder."""
        self._file = None


def _at(scene: Scene, route: Route, rng: random.Random) -> Worker:
    """Return a worker that goes this way, as soon as it holds a job."""
    worker = rng.choice([one for one in scene.workers if one.route is route])
    worker.await_ready()
    until = time.monotonic() + LEASE
    while not scene.held_by(worker) and time.monotonic() < until:
        time.sleep(0.02)
    return worker


class Partition:
    """Loses a worker's packets for longer than its leases."""

    def __init__(
        self, name: str, route: NamespaceRoute, ways: Sequence[tuple[str, str]]
    ) -> None:
        self.name, self.routes = name, [route]
        self._ways = ways

    def why_not(self, scene: Scene) -> str | None:
        """It needs root, and two programs."""
        return why_no_namespace()

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Lose packets until others have taken over."""
        (route,) = self.routes
        worker = _at(scene, route, rng)
        at = time.monotonic()
        route.namespace.drop(*self._ways)
        scene.hit(worker, scene.held_by(worker), at)
        time.sleep(LEASE + POLL + rng.uniform(0.5, 3.0))
        self.heal()

    def heal(self) -> None:
        """Let them pass again."""
        for route in self.routes:
            route.heal()


class Latency:
    """Makes a worker's way to the server long."""

    name = "latency"

    def __init__(self, route: ProxyRoute) -> None:
        self.routes = [route]

    def why_not(self, scene: Scene) -> str | None:
        """It can always strike."""
        return None

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Delay all that is sent, either way."""
        (route,) = self.routes
        assert route.proxy is not None
        least, most = rng.choice([(0.05, 0.05), (0.02, 0.3), (0.3, 0.3)])
        scene.note(f"{least} to {most} s")
        route.proxy.delay = partial(random.Random(rng.random()).uniform, least, most)
        time.sleep(rng.uniform(LEASE, 2 * LEASE))
        self.heal()

    def heal(self) -> None:
        """Delay nothing."""
        for route in self.routes:
            route.heal()


class CommitLost:
    """Swallows answers to COMMIT, of those that happened and of those that did not."""

    name = "commit_lost"

    def __init__(self, route: ProxyRoute) -> None:
        self.routes = [route]
        self.lost: list[bool] = []
        """Whether they had happened, of all COMMITs that got no answer."""

    def why_not(self, scene: Scene) -> str | None:
        """It can always strike."""
        return None

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Swallow several, one after the other."""
        (route,) = self.routes
        proxy = route.proxy
        assert proxy is not None
        worker = _at(scene, route, rng)
        for _ in range(rng.randint(3, 8)):
            proxy.happens = rng.random() < 0.5
            scene.hit(worker, scene.held_by(worker))
            proxy.cuts.clear()
            proxy.cut_after = b""
            until = time.monotonic() + LEASE
            while not proxy.cuts and time.monotonic() < until:
                time.sleep(0.01)
            proxy.cut_after = None
            self.lost += proxy.cuts
            scene.note(f"answers lost: {proxy.cuts}")
            time.sleep(rng.uniform(0.0, 0.5))

    def heal(self) -> None:
        """Let them pass."""
        for route in self.routes:
            route.heal()


class ClockSkew:
    """Sets a worker's wall clock ten minutes forward or back."""

    name = "clock_skew"

    def __init__(self) -> None:
        self.routes = [SkewedRoute()]

    def why_not(self, scene: Scene) -> str | None:
        """It needs libfaketime."""
        return None if faketime() else "needs libfaketime: apt-get install faketime"

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Set it wrong for several leases."""
        (route,) = self.routes
        worker, skew = _at(scene, route, rng), rng.choice(SKEWS)
        scene.note(f"{worker.runner_name} {skew}")
        route.set(skew)
        scene.hit(worker, scene.held_by(worker))
        time.sleep(rng.uniform(LEASE, 3 * LEASE))
        self.heal()

    def heal(self) -> None:
        """Set it right."""
        for route in self.routes:
            route.set("+0")


class PgBouncerRestart:
    """Ends the pooler in front of a worker, which comes back at once."""

    name = "pgbouncer_restart"

    def __init__(self) -> None:
        self.routes = [PoolerRoute()]

    def why_not(self, scene: Scene) -> str | None:
        """It needs PgBouncer."""
        return pgbouncer.why_not()

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Do so several times in a row."""
        (route,) = self.routes
        assert route.pooler is not None
        worker = _at(scene, route, rng)
        for _ in range(rng.randint(1, 4)):
            scene.hit(worker, scene.held_by(worker))
            route.pooler.restart()
            time.sleep(rng.uniform(0.1, 1.0))

    def heal(self) -> None:
        """It has come back."""


def network_nemeses() -> dict[str, Callable[[], Nemesis]]:
    """Return what makes each nemesis of this module; some share their worker."""
    cut_off, proxied = NamespaceRoute(), ProxyRoute()
    partitions = {"out": (OUT,), "in": (IN,), "": (OUT, IN)}
    made: dict[str, Callable[[], Nemesis]] = {}
    for way, ways in partitions.items():
        name = "_".join(filter(None, ("partition", way)))
        made[name] = partial(Partition, name, cut_off, ways)
    others = (partial(Latency, proxied), partial(CommitLost, proxied))
    made |= {"latency": others[0], "commit_lost": others[1]}
    return made | {"clock_skew": ClockSkew, "pgbouncer_restart": PgBouncerRestart}


NEMESES = network_nemeses()
"""What makes each nemesis of this module, by its name."""
