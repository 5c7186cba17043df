"""What went wrong in another queue's HTTP interface, as what must hold here."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs.http import create_app
from sqla_jobs.http.upkeep import Upkeep
from tests.integration.http.conftest import Job, row
from tests.integration.http.kit import Client, serving
from tests.integration.http.test_leases import expire


@pytest.fixture
def fresh(maker: sessionmaker[Session], session: Session) -> Iterator[Client]:
    """Yield a client of a service that has not swept yet, so its next lease does."""
    with serving(create_app(maker, Job)) as client:
        yield client


def test_expired_holder_cannot_touch_the_new_holders_lease(
    fresh: Client, session: Session
) -> None:
    """
    Ack, fail and heartbeat by the id alone would reach whoever holds the job now.

    Here the service itself takes the job back: no runner, no sweep by hand.
    """
    job_id = fresh.enqueue(queue="q")
    session.execute(
        update(Job).values(
            state="running",
            lease_token=7,
            attempt=1,
            leased_until=text("now() - '1 s'::interval"),
        )
    )
    session.commit()

    [again] = fresh.lease("q")
    until = row(session, job_id).leased_until
    late = [
        fresh.post(f"/v1/jobs/{job_id}/ack", token=7),
        fresh.post(f"/v1/jobs/{job_id}/fail", token=7, reason="late"),
        fresh.post(f"/v1/jobs/{job_id}/heartbeat", token=7, extend_ms=3_600_000),
    ]

    assert (again["id"], again["attempt"]) == (job_id, 2)
    assert [one.status for one in late] == [409, 409, 409]
    assert row(session, job_id).leased_until == until
    ack = fresh.post(f"/v1/jobs/{job_id}/ack", token=again["token"])
    assert ack.status == 200


def test_crash_loop_ends(
    client: Client, session: Session, maker: sessionmaker[Session]
) -> None:
    """A job whose workers all die is not leased for ever: it becomes a dead letter."""
    job_id = client.enqueue(queue="q", max_attempts=50)

    leases = 0
    for _ in range(6):
        with serving(create_app(maker, Job)) as fresh:  # sweeps at its first lease
            leases += len(fresh.lease("q"))
        expire(session)

    shown = client.get(f"/v1/jobs/{job_id}").json
    assert leases == 3
    assert (shown["state"], shown["crashes"]) == ("discarded", 3)
    assert shown["reason"].startswith("poison")
    assert [one["outcome"] for one in shown["attempts"]] == ["crash"] * 3


def test_unknown_id_is_not_a_conflict(client: Client) -> None:
    """404 and 409 are told apart."""
    job_id = client.enqueue(queue="q")

    assert client.post("/v1/jobs/999/ack", token=1).status == 404
    assert client.post(f"/v1/jobs/{job_id}/ack", token=1).status == 409


def test_last_error_is_returned(client: Client) -> None:
    """Why a dead letter died is in the list of dead letters."""
    client.enqueue(queue="q", max_attempts=1)
    [job] = client.lease("q")
    client.post(f"/v1/jobs/{job['id']}/fail", token=job["token"], reason="no route")

    [dead] = client.get("/v1/queues/q/dead").json["jobs"]

    assert dead["last_error"] == "no route"


def test_repeat_after_the_window_enqueues(client: Client, session: Session) -> None:
    """An old key never swallows a job: after its window a new one is made."""
    send = {"queue": "q", "idempotency_key": "k", "idempotency_window_ms": 60_000}
    first = client.enqueue(**send)
    assert client.post("/v1/jobs", **send).json["job_id"] == first
    session.execute(update(Job.Idempotency).values(expires_at=text("now()")))
    session.commit()

    again = client.post("/v1/jobs", **send)

    assert (again.status, again.json["created"]) == (201, True)
    assert client.get(f"/v1/jobs/{again.json['job_id']}").json["state"] == "available"
    assert client.post("/v1/jobs", **send).json["job_id"] == again.json["job_id"]


def test_expired_keys_are_purged(fresh: Client, session: Session) -> None:
    """Keys whose window is over do not pile up."""
    fresh.enqueue(queue="q", idempotency_key="k", idempotency_window_ms=1)
    session.execute(update(Job.Idempotency).values(expires_at=text("now()")))
    session.commit()

    fresh.lease("q")

    assert session.query(Job.Idempotency).count() == 0


def test_worker_takes_what_it_starts(client: Client) -> None:
    """The surplus of a lease is not hidden: unasked jobs stay for other workers."""
    for _ in range(3):
        client.enqueue(queue="q")

    first = client.lease("q")  # one, unless asked for more
    rest = client.lease("q", limit=10)

    assert (len(first), len(rest)) == (1, 2)


def test_short_leases_are_refused_not_run_twice(client: Client) -> None:
    """A lease that no heartbeat can keep is 422, as are numbers beyond 32 bits."""
    for lease_ms in (0, 1, 2_999, 2**32 + 30_000):
        assert client.post("/v1/lease", queue="q", lease_ms=lease_ms).status == 422
    for limit in (-1, 0, 501):
        assert client.post("/v1/lease", queue="q", limit=limit).status == 422


def test_jobs_come_in_the_order_of_the_claim(client: Client) -> None:
    """A batch is in claim order: higher priority first, then as enqueued."""
    ids = [client.enqueue(queue="q", priority=n % 2) for n in range(6)]

    found = [job["id"] for job in client.lease("q", limit=10)]

    assert found == [*ids[1::2], *ids[::2]]


def test_each_job_is_leased_once_by_many_workers(
    client: Client, session: Session
) -> None:
    """Workers that lease at once never get the same job."""
    wanted = {client.enqueue(queue="q") for _ in range(60)}
    found: Counter[int] = Counter()
    barrier = threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        while jobs := client.lease("q", limit=3):
            for job in jobs:
                found[job["id"]] += 1
                done = client.post(f"/v1/jobs/{job['id']}/ack", token=job["token"])
                assert done.status == 200

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(found) == wanted
    assert set(found.values()) == {1}


def test_same_key_from_many_clients_enqueues_once(client: Client) -> None:
    """Concurrent requests with one idempotency key make one job."""
    for number in range(5):
        answers: list[tuple[int, int]] = []
        barrier = threading.Barrier(6)

        def send(
            key: str, into: list[tuple[int, int]], start: threading.Barrier
        ) -> None:
            start.wait()
            answer = client.post("/v1/jobs", queue="q", idempotency_key=key)
            into.append((answer.status, answer.json["job_id"]))

        threads = [
            threading.Thread(target=send, args=(f"k{number}", answers, barrier))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len({job_id for _, job_id in answers}) == 1
        assert sorted(status for status, _ in answers) == [200] * 5 + [201]


def test_due_jobs_are_staged_without_a_runner(fresh: Client, session: Session) -> None:
    """A scheduled job and a failed one come back when their time has come."""
    job_id = fresh.enqueue(queue="q", delay_ms=3_600_000)
    past = datetime.now(UTC) - timedelta(minutes=1)
    session.execute(update(Job).values(run_at=past))
    session.commit()

    assert [job["id"] for job in fresh.lease("q")] == [job_id]


def test_old_jobs_are_deleted_without_a_runner(fresh: Client, session: Session) -> None:
    """Retention holds for raw jobs and for mapped ones, by the classes' rules."""
    kept = fresh.enqueue(queue="q")
    old = fresh.enqueue(queue="q"), fresh.enqueue(kind="send", payload={"subject": ""})
    past = datetime.now(UTC) - timedelta(days=2)
    done = update(Job).where(Job.id.in_(old))
    session.execute(done.values(state="completed", finished_at=past))
    session.commit()

    fresh.lease("elsewhere")

    assert [fresh.get(f"/v1/jobs/{n}").status for n in (*old, kept)] == [404, 404, 200]


def test_sweeps_are_once_a_second_and_chores_once_a_minute() -> None:
    """However many ask for jobs, they sweep no more often than runners do."""
    clock, done = Clock(), []

    class CountingGate:
        async def run(self, work: object) -> int:
            done.append(work.__name__)  # type: ignore[attr-defined]
            return 0

    upkeep = Upkeep(CountingGate(), Job.__jobs__, clock=clock)  # type: ignore[arg-type]
    for now in (0.0, 0.5, 1.0, 1.5, 59.0, 60.0):
        clock.now = now
        coroutine = upkeep.run_if_due()
        with pytest.raises(StopIteration):
            coroutine.send(None)

    assert done == ["_sweep", "_clean", "_sweep", "_sweep", "_sweep", "_clean"]


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        """Return the time that is set."""
        return self.now
