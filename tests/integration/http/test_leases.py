"""Workers over HTTP: the lease, its proof, and each way that an attempt can end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from tests.integration.http.conftest import Job, row
from tests.integration.http.kit import Client


def leased(client: Client, **job: Any) -> tuple[int, int]:
    """Enqueue a job and lease it; return its id and the token."""
    job_id = client.enqueue(queue="q", **job)
    [found] = client.lease("q")
    assert found["id"] == job_id
    return job_id, found["token"]


def expire(session: Session) -> None:
    """Let every lease end a minute ago."""
    session.rollback()
    past = datetime.now(UTC) - timedelta(minutes=1)
    session.execute(update(Job).where(Job.state == "running").values(leased_until=past))
    session.commit()


def test_lease_gives_what_a_worker_needs(client: Client) -> None:
    """A leased job comes with its token, its data and the times that matter."""
    job_id = client.enqueue(
        queue="q", payload={"a": 1}, payload_bytes="AP8=", channel="c", priority=3
    )

    [job] = client.lease("q", lease_ms=60_000)

    assert job == {
        "id": job_id,
        "token": 1,
        "kind": "raw",
        "queue": "q",
        "channel": "c",
        "payload": {"a": 1},
        "payload_bytes": "AP8=",
        "attempt": 1,
        "max_attempts": 10,
        "state": {},
        "leased_until": job["leased_until"],
        "priority": 3,
        "run_at": job["run_at"],
        "created_at": job["created_at"],
    }
    left = datetime.fromisoformat(job["leased_until"]) - datetime.now(UTC)
    assert timedelta(seconds=30) < left < timedelta(seconds=90)


def test_only_raw_jobs_are_leased_unless_asked(client: Client) -> None:
    """A worker does not take kinds that a runner may handle, unless it names them."""
    ids = [
        client.enqueue(queue="q", kind="send", payload={"subject": "Hi"}),
        client.enqueue(queue="q"),
    ]

    raw = client.lease("q", limit=10)
    sends = client.lease("q", limit=10, kinds=["send"])

    assert [job["id"] for job in raw] == [ids[1]]
    assert [job["id"] for job in sends] == [ids[0]]
    assert client.post("/v1/lease", queue="q", kinds=["sent"]).status == 422


def test_rows_of_an_alias_are_leased_with_its_kind(
    client: Client, session: Session
) -> None:
    """Jobs that an older version enqueued under an old name are not forgotten."""
    job_id = client.enqueue(queue="q", kind="send", payload={"subject": "Hi"})
    session.execute(update(Job).values(kind="old_send"))
    session.commit()

    assert [job["id"] for job in client.lease("q", kinds=["send"])] == [job_id]


def test_ack_completes_with_a_result(client: Client, session: Session) -> None:
    """An ack completes the job and keeps its result; again it is answered alike."""
    job_id, token = leased(client)

    answers = [
        client.post(f"/v1/jobs/{job_id}/ack", token=token, result=result)
        for result in ([1, {"a": None}], "another")
    ]

    assert [one.status for one in answers] == [200, 200]
    assert answers[0].json == {"job_id": job_id, "state": "completed"}
    assert row(session, job_id).result == [1, {"a": None}]


def test_fail_waits_for_the_backoff_or_as_told(
    client: Client, session: Session
) -> None:
    """A failure waits; the error and the attempt are kept; the last one discards."""
    job_id, token = leased(client, max_attempts=2)

    first = client.post(
        f"/v1/jobs/{job_id}/fail", token=token, reason="no\0t now", retry_ms=0
    )
    session.execute(update(Job).values(state="available"))
    session.commit()
    [again] = client.lease("q")
    last = client.post(f"/v1/jobs/{job_id}/fail", token=again["token"], reason="dead")

    assert (first.status, first.json["state"]) == (200, "retryable")
    assert (again["attempt"], again["token"]) == (2, 2)
    assert last.json["state"] == "discarded"
    errors = [one["error"] for one in client.get(f"/v1/jobs/{job_id}").json["attempts"]]
    assert errors == ["no\ufffdt now", "dead"]


def test_heartbeat_extends_and_never_shortens(client: Client, session: Session) -> None:
    """The lease goes on from now, even beyond the job's own, and is never cut."""
    job_id, token = leased(client)
    session.execute(update(Job).values(lease=timedelta(seconds=30)))
    session.commit()
    path = f"/v1/jobs/{job_id}/heartbeat"

    longer = client.post(path, token=token, extend_ms=3_600_000).json
    shorter = client.post(path, token=token, extend_ms=3_000).json

    left = datetime.fromisoformat(longer["leased_until"]) - datetime.now(UTC)
    assert left > timedelta(minutes=55)
    assert shorter == longer
    assert shorter["cancel_requested"] is False


def test_checkpoint_reaches_the_next_attempt(client: Client) -> None:
    """What a checkpoint saved is the state of the next lease."""
    job_id, token = leased(client)
    client.post(f"/v1/jobs/{job_id}/checkpoint", token=token, state={"page": 7})

    released = client.post(f"/v1/jobs/{job_id}/release", token=token)
    [again] = client.lease("q")

    assert released.json["state"] == "available"
    assert again["state"] == {"page": 7}
    assert again["attempt"] == 1  # given back


def test_snooze_gives_the_attempt_back(client: Client, session: Session) -> None:
    """A snoozed job is scheduled, and its attempt not counted."""
    job_id, token = leased(client)

    answer = client.post(f"/v1/jobs/{job_id}/snooze", token=token, delay_ms=60_000)

    assert answer.json["state"] == "scheduled"
    assert (row(session, job_id).attempt, row(session, job_id).snoozes) == (0, 1)


def test_cancelled_job_that_fails_stays_cancelled(client: Client) -> None:
    """A worker that gives up after it was asked to ends the job as cancelled."""
    for verb, more in (("fail", {"reason": "stopped"}), ("release", {})):
        job_id, token = leased(client)
        client.post(f"/v1/jobs/{job_id}/cancel", reason="not needed")

        answer = client.post(f"/v1/jobs/{job_id}/{verb}", token=token, **more)

        assert answer.json["state"] == "cancelled"


VERBS: dict[str, dict[str, Any]] = {
    "ack": {},
    "fail": {"reason": "x"},
    "heartbeat": {},
    "checkpoint": {"state": {}},
    "release": {},
    "snooze": {"delay_ms": 1_000},
}


@pytest.mark.parametrize("verb", VERBS)
def test_lost_lease_is_a_conflict(client: Client, session: Session, verb: str) -> None:
    """After the job was leased to somebody else, every verb is 409 with its state."""
    job_id, old = leased(client)
    expire(session)
    new = take_over(client, session)
    before = row(session, job_id).leased_until

    late = client.post(f"/v1/jobs/{job_id}/{verb}", token=old, **VERBS[verb])

    assert (late.status, late.json["state"]) == (409, "running")
    job = row(session, job_id)
    assert (job.lease_token, job.leased_until) == (new, before)
    assert job.checkpoint is None


def take_over(client: Client, session: Session) -> int:
    """Rescue the expired job as a sweep does, and lease it again."""
    from sqla_jobs import rescue

    rescue(session, Job)
    session.commit()
    [again] = client.lease("q")
    return int(again["token"])


@pytest.mark.parametrize("verb", VERBS)
def test_verb_needs_the_token(client: Client, session: Session, verb: str) -> None:
    """The id alone moves nothing: no token is 422, a guess 409, no such job 404."""
    job_id, token = leased(client)
    path, body = f"/v1/jobs/{job_id}/{verb}", VERBS[verb]

    assert client.post(path, **body).status == 422
    assert client.post(path, token=str(token), **body).status == 422
    assert client.post(path, token=token + 1, **body).status == 409
    assert client.post("/v1/jobs/999/ack", token=token).status == 404
    assert row(session, job_id).state == "running"


def test_lease_that_expired_but_is_not_taken_is_still_held(
    client: Client, session: Session
) -> None:
    """A late ack counts while nobody has taken the job back."""
    job_id, token = leased(client)
    expire(session)

    assert client.post(f"/v1/jobs/{job_id}/ack", token=token).status == 200


def test_repeated_ack_of_another_holder_is_a_conflict(
    client: Client, session: Session
) -> None:
    """Only the attempt that completed the job may repeat its ack."""
    job_id, old = leased(client)
    expire(session)
    new = take_over(client, session)
    client.post(f"/v1/jobs/{job_id}/ack", token=new)

    late = client.post(f"/v1/jobs/{job_id}/ack", token=old)

    assert (late.status, late.json["state"]) == (409, "completed")
