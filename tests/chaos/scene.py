"""Where the bank plays: a server, a ledger, and workers that are kept alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.chaos.app import ACCOUNTS, OPENING, Account, Base
from tests.chaos.ledger import Ledger
from tests.chaos.server import Server

ROOT = Path(__file__).parents[2]
LEASE, POLL, GRACE = 3.0, 0.5, 5.0
CONCURRENCY = 8
DRIVERS = ("psycopg", "asyncpg", "psycopg2", "psycopg_async")
PATIENCE = 30.0


class Route(Protocol):
    """How one worker reaches the server."""

    name: str
    dsn: str
    """What the worker is told; its driver is replaced by the worker's."""
    driver: str | None
    """The only driver that suits this way; None if all of `DRIVERS` do."""
    prefix: Sequence[str]
    """The command before the python program, as ``ip netns exec NAME``."""
    environment: Mapping[str, str]

    def open(self, scene: Scene) -> None:
        """Build the way; the server runs and `dsn` is set after this."""

    def close(self) -> None:
        """Remove it; called once, whatever happened."""


class Direct:
    """The server's own unix socket."""

    name = "direct"
    driver: str | None = None
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = {}
    dsn = ""

    def open(self, scene: Scene) -> None:
        """Take the server's address."""
        self.dsn = scene.server.dsn

    def close(self) -> None:
        """Nothing was built."""


@dataclass(frozen=True)
class Event:
    """What a worker said, and when the referee heard it (monotonic seconds)."""

    at: float
    worker: str
    word: str
    values: Sequence[Any]


@dataclass(frozen=True)
class Held:
    """A lease: the job, the token it is held with, and the job's kind."""

    job: int
    token: int
    kind: str


@dataclass(frozen=True)
class Hit:
    """A lease whose holder a nemesis struck at monotonic *at*."""

    nemesis: str
    at: float
    worker: str
    held: Held


@dataclass(frozen=True)
class Handover:
    """A job that a worker gave up at monotonic *at*, or "idle"; after *seconds*."""

    kind: str
    at: float
    seconds: float


@dataclass
class Worker:
    """One place for a worker process; a new process takes the place of a dead one."""

    module: ClassVar[str] = "tests.chaos.worker"
    scene: Scene
    index: int
    route: Route
    driver: str
    starts: int = 0
    runner_id: str | None = None
    process: subprocess.Popen[bytes] = field(init=False)
    _readers: list[threading.Thread] = field(default_factory=list)
    _ready: threading.Event = field(default_factory=threading.Event)
    expected_to_end: bool = False

    @property
    def runner_name(self) -> str:
        """The runner's name in the database: the place, and which process in it."""
        return f"worker-{self.index}.{self.starts}"

    @property
    def alive(self) -> bool:
        """Whether its process runs, or is stopped by a signal."""
        return self.process.poll() is None

    def start(self) -> None:
        """Start a process."""
        self.starts += 1
        self.runner_id, self.expected_to_end = None, False
        self._ready.clear()
        scene = self.scene
        options = {
            "dsn": self.route.dsn,
            "driver": self.driver,
            "name": self.runner_name,
            "ledger": scene.ledger.path,
            "seed": scene.seed,
            "lease": LEASE,
            "poll": POLL,
            "grace": GRACE,
            "concurrency": CONCURRENCY,
        }
        program = [sys.executable, "-m", self.module, json.dumps(options)]
        self.process = subprocess.Popen(
            [*self.route.prefix, *program],
            cwd=ROOT,
            env={**os.environ, **scene.environment, **self.route.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for stream, hear in (
            (self.process.stdout, self._said),
            (self.process.stderr, self._logged),
        ):
            reader = threading.Thread(
                target=_read, args=(stream, hear, self.runner_name), daemon=True
            )
            reader.start()
            self._readers.append(reader)

    def _said(self, name: str, line: bytes) -> None:
        word, *values = json.loads(line)
        if word == "hello" and name == self.runner_name:
            self.runner_id = values[0]
            self._ready.set()
        self.scene.events.append(Event(time.monotonic(), name, word, values))

    def _logged(self, name: str, line: bytes) -> None:
        self.scene.logs.append((name, line.decode(errors="replace").rstrip("\n")))

    def await_bye(self, since: float, seconds: float) -> float | None:
        """Return when its runner returned, after *since*; None if it does not."""
        until, name = time.monotonic() + seconds, self.runner_name
        over = False
        while not over:
            # Before the look, so that nothing is said after it.
            over = not any(one.is_alive() for one in self._readers)
            over = over or time.monotonic() > until
            for event in reversed(self.scene.events):
                if event.at < since:
                    break
                if event.word == "bye" and event.worker == name:
                    return event.at
            time.sleep(0.02)
        return None

    def await_ready(self, seconds: float = PATIENCE) -> bool:
        """Wait until its runner works; return whether it does."""
        until = time.monotonic() + seconds
        self._ready.wait(seconds)
        stmt = text("SELECT count(*) FROM jobs_runners WHERE name = :name")
        while time.monotonic() < until:
            with suppress(DBAPIError), self.scene.engine.connect() as connection:
                if connection.scalar(stmt, {"name": self.runner_name}):
                    return True
            time.sleep(0.05)
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End the process with SIGKILL, and wait for that."""
        self.expected_to_end = True
        self.signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Start a new process, if the old one has ended."""
        with self.scene.keeping:
            if not self.alive:
                self.close()
                self.start()

    def close(self) -> None:
        """Wait for the end of what the ended process said."""
        for reader in self._readers:
            reader.join(PATIENCE)
        self._readers.clear()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def _read(stream: IO[bytes], hear: Callable[[str, bytes], None], name: str) -> None:
    with suppress(ValueError):  # closed
        for line in stream:
            hear(name, line)


class Scene:
    """
    A server with the bank's tables, its ledger, and one worker per route.

    Args:
        routes: How the workers reach the server, one worker each.
        seed: Decides what happens inside the jobs.
        environment: For every worker, beside the referee's own.
    """

    worker_class = Worker

    def __init__(
        self,
        routes: Sequence[Route] = (),
        *,
        seed: str = "0",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.routes, self.seed = list(routes), seed
        self.environment = {"PYTHONPATH": str(ROOT), **(environment or {})}
        self.events: list[Event] = []
        self.logs: list[tuple[str, str]] = []
        self.hits: list[Hit] = []
        self.handovers: list[Handover] = []
        self.notes: list[tuple[float, str]] = []
        self._lane = threading.local()
        self.workers: list[Worker] = []
        self.keeping = threading.RLock()
        self.unexpected: list[str] = []
        self._opened: list[Route] = []
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def open(self) -> None:
        """Start everything."""
        self.server = self.new_server()
        self.server.open()
        self.ledger = Ledger(str(self.server.folder / "ledger.sock"), self.seed)
        self.engine = self.new_engine()
        Base.metadata.create_all(self.engine)
        with Session(self.engine) as session:
            session.add_all(Account(id=n, balance=OPENING) for n in range(ACCOUNTS))
            session.commit()
        self.prepare()
        for route in dict.fromkeys(self.routes):
            self._opened.append(route)
            route.open(self)
        for index, route in enumerate(self.routes):
            driver = route.driver or DRIVERS[index % len(DRIVERS)]
            self.workers.append(self.worker_class(self, index, route, driver))
            self.workers[-1].start()
        self._keeper.start()

    def prepare(self) -> None:
        """Make what workers need beside the tables."""

    @property
    def striking(self) -> str:
        """The name of the nemesis that is at work in this thread."""
        return str(getattr(self._lane, "striking", ""))

    @striking.setter
    def striking(self, name: str) -> None:
        self._lane.striking = name

    def new_server(self) -> Any:
        """Return the server, which is not started yet."""
        return Server()

    def new_engine(self, name: str = "referee") -> Engine:
        """Return an engine of the referee's own; nemeses spare the "referee"."""
        return create_engine(
            self.server.dsn,
            connect_args={"application_name": name, "connect_timeout": 10},
            pool_pre_ping=True,
        )

    def _keep(self) -> None:
        while not self._closing.wait(0.1):
            for worker in self.workers:
                if not worker.alive:
                    self._note_end(worker)
                    worker.restart()

    def _note_end(self, worker: Worker) -> None:
        code = worker.process.returncode
        if code and not worker.expected_to_end:
            self.unexpected.append(f"{worker.runner_name} ended with status {code}")

    def note(self, text_: str) -> None:
        """Keep a remark on what a nemesis does, for the story of the run."""
        self.notes.append((time.monotonic(), f"{self.striking}: {text_}"))

    # Leases

    def held_by(self, worker: Worker) -> list[Held]:
        """Return the leases that a worker's runner holds, once the server answers."""
        if worker.runner_id is None:
            return []
        stmt = text(
            "SELECT id, lease_token, kind FROM jobs"
            " WHERE state = 'running' AND runner_id = CAST(:runner AS uuid)"
        )
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with self.engine.connect() as connection:
                    rows = connection.execute(stmt, {"runner": worker.runner_id})
                    return [Held(*row) for row in rows]
            except DBAPIError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)

    def hit(
        self, worker: Worker, held: Sequence[Held], at: float | None = None
    ) -> None:
        """Note that the nemesis at work struck the holder of these leases."""
        when = time.monotonic() if at is None else at
        name = worker.runner_name
        self.hits += [Hit(self.striking, when, name, lease) for lease in held]

    # The end

    def stop_keeping(self) -> None:
        """Let workers end from now on."""
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join()

    def close(self) -> None:
        """End and remove everything that was started."""
        self.stop_keeping()
        for worker in self.workers:
            worker.kill()
            worker.close()
        for route in self._opened:
            route.close()
        if hasattr(self, "engine"):
            self.engine.dispose()
        if hasattr(self, "ledger"):
            self.ledger.close()
        if hasattr(self, "server"):
            self.server.close()
