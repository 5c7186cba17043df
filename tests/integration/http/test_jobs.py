"""Jobs over HTTP: enqueue, look, cancel, requeue, delete, and what queues hold."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from tests.integration.http.conftest import Send, row
from tests.integration.http.kit import Client


def test_raw_job_keeps_what_was_sent(client: Client, session: Session) -> None:
    """A raw job needs no class: queue, payload and options are in its row."""
    job_id = client.enqueue(
        queue="images/large",
        payload={"url": "https://example.org/ü", "sizes": [1, 2.5, None]},
        payload_bytes=base64.b64encode(b"\0\xff").decode(),
        channel="tenant 7",
        priority=-5,
        max_attempts=2,
        fingerprint="batch 9",
        tags=["a"],
    )

    job = row(session, job_id)
    assert (job.kind, job.queue, job.channel) == ("raw", "images/large", "tenant 7")
    assert job.payload == {"url": "https://example.org/ü", "sizes": [1, 2.5, None]}
    assert (job.priority, job.max_attempts) == (-5, 2)
    assert (job.payload_bytes, job.tags) == (b"\0\xff", ["a"])
    assert (job.fingerprint, job.state) == ("batch 9", "available")


def test_mapped_kind_is_made_by_its_class(client: Client, session: Session) -> None:
    """JSON arguments become typed ones, and the class's defaults apply."""
    payload = {"subject": "Hi", "due": "2026-01-31T12:00:00+02:00"}

    job = row(session, client.enqueue(kind="send", payload=payload))

    assert isinstance(job, Send)
    assert (job.subject, job.copies) == ("Hi", 1)
    assert job.due == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert (job.queue, job.max_attempts) == ("mail", 3)


def test_alias_of_a_kind_makes_its_class(client: Client, session: Session) -> None:
    """An old name of a kind still works; the row has the new one."""
    job = row(session, client.enqueue(kind="old_send", payload={"subject": "Hi"}))

    assert job.kind == "send"


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "payload.subject"),
        ({"subject": 7}, "payload.subject"),
        ({"subject": "Hi", "due": "tomorrow"}, "payload.due"),
        ({"subject": "Hi", "due": "2026-01-31T12:00:00"}, "payload.due"),
        ({"subject": "Hi", "copies": True}, "payload.copies"),
        ({"subject": "Hi", "invoice_id": "1"}, "payload.invoice_id"),
        ({"subject": "Hi", "subjekt": "x"}, "payload.subjekt"),
        ({"subject": "Hi", "id": 1}, "payload.id"),
        ({"subject": "Hi", "state": "completed"}, "payload.state"),
    ],
)
def test_wrong_argument_is_named(
    client: Client, payload: dict[str, object], field: str
) -> None:
    """An argument that is missing, unknown or of the wrong type is 422, by name."""
    answer = client.post("/v1/jobs", kind="send", payload=payload)

    assert answer.status == 422
    assert [one["field"] for one in answer.json["errors"]] == [field]


def test_unknown_kind_is_refused(client: Client) -> None:
    """A kind that is neither raw nor mapped is 422; the answer lists those known."""
    answer = client.post("/v1/jobs", kind="sned", payload={})

    assert answer.status == 422
    assert "did you mean 'send'" in answer.json["detail"]
    assert "(known: raw, send)" in answer.json["detail"]


def test_row_that_is_not_there_is_a_conflict(client: Client) -> None:
    """A foreign key without its row is 409, and says nothing of the database."""
    payload = {"subject": "Hi", "invoice_id": 12345}

    answer = client.post("/v1/jobs", kind="send", payload=payload)

    assert answer.status == 409
    assert "12345" not in answer.text
    assert "http_invoices" not in answer.text


def test_payload_above_the_limit_of_its_class(client: Client) -> None:
    """A payload above the class's limit is 413, as a body that is too large."""
    payload = {"subject": "x" * 2_100}

    assert client.post("/v1/jobs", kind="send", payload=payload).status == 413
    assert client.post("/v1/jobs", payload=payload, queue="q").status == 201


def test_later_job_is_scheduled(client: Client, session: Session) -> None:
    """run_at and delay_ms schedule a job; both at once are 422."""
    at = datetime(2099, 1, 1, tzinfo=UTC)
    one = row(session, client.enqueue(queue="q", run_at=at.isoformat()))
    other = row(session, client.enqueue(queue="q", delay_ms=3_600_000))

    assert (one.state, one.run_at) == ("scheduled", at)
    assert other.state == "scheduled"
    assert other.run_at - other.created_at == pytest.approx(
        timedelta(hours=1), abs=timedelta(minutes=1)
    )
    both = client.post("/v1/jobs", queue="q", delay_ms=1_000, run_at=at.isoformat())
    assert both.status == 422


def test_unique_key_has_one_live_job(client: Client, session: Session) -> None:
    """A second job with the key is 409, or answered with the first one's id."""
    first = client.enqueue(queue="q", unique_key="only")

    again = client.post("/v1/jobs", queue="q", unique_key="only")
    same = client.post("/v1/jobs", queue="q", unique_key="only", on_conflict="return")
    newer = client.post("/v1/jobs", queue="q", unique_key="only", on_conflict="replace")

    assert (again.status, again.json["job_id"]) == (409, first)
    assert (same.status, same.json) == (200, {"job_id": first, "created": False})
    assert (newer.status, newer.json["created"]) == (201, True)
    assert row(session, first).state == "cancelled"


def test_repeat_with_an_idempotency_key_enqueues_once(client: Client) -> None:
    """A repeat is answered with the first job, also when it is done; per queue."""
    send = {"queue": "q", "idempotency_key": "order 7"}
    first = client.enqueue(**send)
    [leased] = client.lease("q")
    client.post(f"/v1/jobs/{first}/ack", token=leased["token"])

    again = client.post("/v1/jobs", **send)
    elsewhere = client.post("/v1/jobs", **(send | {"queue": "other"}))

    assert (again.status, again.json) == (200, {"job_id": first, "created": False})
    assert elsewhere.status == 201


def test_job_is_shown_with_its_attempts(client: Client) -> None:
    """Whoever may see data sees the job, its last error and each failed attempt."""
    job_id = client.enqueue(queue="q", payload={"a": 1}, max_attempts=1)
    [leased] = client.lease("q")
    client.post(f"/v1/jobs/{job_id}/fail", token=leased["token"], reason="broken")

    shown = client.get(f"/v1/jobs/{job_id}").json

    assert (shown["state"], shown["last_error"]) == ("discarded", "broken")
    assert shown["payload"] == {"a": 1}
    [attempt] = shown["attempts"]
    assert (attempt["number"], attempt["error"]) == (1, "broken")


def test_status_has_no_data(client: Client) -> None:
    """Where a job is can be told without its payload, result or errors."""
    job_id = client.enqueue(queue="q", payload={"secret": 1})

    status = client.get(f"/v1/jobs/{job_id}/status").json

    assert (status["id"], status["state"]) == (job_id, "available")
    assert not {"payload", "result", "checkpoint", "last_error"} & status.keys()


def test_cancel_ends_waiting_jobs_and_asks_running_ones(client: Client) -> None:
    """A waiting job ends at once; one that runs learns of it at its heartbeat."""
    waiting = client.enqueue(queue="later", delay_ms=60_000)
    running = client.enqueue(queue="q")
    [leased] = client.lease("q")

    ended = client.post(f"/v1/jobs/{waiting}/cancel", reason="not needed")
    asked = client.send("POST", f"/v1/jobs/{running}/cancel")
    beat = client.post(f"/v1/jobs/{running}/heartbeat", token=leased["token"])
    again = client.send("POST", f"/v1/jobs/{waiting}/cancel")

    assert (ended.json["state"], ended.json["cancel_requested"]) == ("cancelled", False)
    assert (asked.json["state"], asked.json["cancel_requested"]) == ("running", True)
    assert beat.json["cancel_requested"] is True
    assert (again.status, again.json["state"]) == (409, "cancelled")


def test_dead_letters_are_listed_requeued_and_deleted(client: Client) -> None:
    """Dead letters come newest first, in pages; they run again, or go."""
    ids = [client.enqueue(queue="a/b", payload={"n": n}) for n in range(3)]
    for leased in client.lease("a/b", limit=3):
        path = f"/v1/jobs/{leased['id']}/fail"
        client.post(path, token=leased["token"], reason="no", discard=True)

    first = client.get("/v1/queues/a%2Fb/dead?limit=2").json
    before = first["next_before_id"]
    rest = client.get(f"/v1/queues/a%2Fb/dead?limit=2&before_id={before}").json
    again = client.post(f"/v1/jobs/{ids[0]}/requeue")
    gone = client.send("DELETE", f"/v1/jobs/{ids[1]}")

    assert [job["id"] for job in first["jobs"]] == [ids[2], ids[1]]
    assert [job["reason"] for job in first["jobs"]] == ["no", "no"]
    assert [job["id"] for job in rest["jobs"]] == [ids[0]]
    assert rest["next_before_id"] is None
    assert (again.status, again.json["state"]) == (200, "available")
    assert gone.status == 200
    assert client.get(f"/v1/jobs/{ids[1]}").status == 404
    assert client.post(f"/v1/jobs/{ids[0]}/requeue").status == 409
    assert client.send("DELETE", f"/v1/jobs/{ids[0]}").status == 409


def test_requeue_keeps_the_state_if_asked(client: Client) -> None:
    """The checkpoint of a requeued job is cleared unless it is to stay."""
    job_id = client.enqueue(queue="q")
    for keep in (True, False):
        [leased] = client.lease("q")
        path, token = f"/v1/jobs/{job_id}", leased["token"]
        client.post(f"{path}/checkpoint", token=token, state={"page": 7})
        client.post(f"{path}/fail", token=token, reason="no", discard=True)
        client.post(f"{path}/requeue", keep_state=keep)
        shown = client.get(path).json
        assert shown["checkpoint"] == ({"page": 7} if keep else None)


def test_requeue_into_a_taken_key_is_a_conflict(client: Client) -> None:
    """A dead letter whose unique key has a live job stays dead: 409."""
    dead = client.enqueue(queue="q", unique_key="k")
    [leased] = client.lease("q")
    path = f"/v1/jobs/{dead}/fail"
    client.post(path, token=leased["token"], reason="no", discard=True)
    client.enqueue(queue="q", unique_key="k")

    answer = client.post(f"/v1/jobs/{dead}/requeue")

    assert (answer.status, answer.json["state"]) == (409, "discarded")


def test_depth_tells_ready_from_scheduled(client: Client) -> None:
    """The depth of a queue counts what may run now apart from what is for later."""
    client.enqueue(queue="q")
    client.enqueue(queue="q", delay_ms=60_000)
    client.enqueue(queue="other")
    client.lease("other")

    depth = client.get("/v1/queues/q/depth").json
    queues = client.get("/v1/queues").json["queues"]

    assert (depth["ready"], depth["scheduled"], depth["running"]) == (1, 1, 0)
    assert depth["capped"] == []
    assert {one["queue"]: one["running"] for one in queues} == {"q": 0, "other": 1}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/999"),
        ("GET", "/v1/jobs/999/status"),
        ("POST", "/v1/jobs/999/cancel"),
        ("POST", "/v1/jobs/999/requeue"),
        ("DELETE", "/v1/jobs/999"),
        ("GET", "/v2/jobs"),
    ],
)
def test_what_is_not_there_is_404(client: Client, method: str, path: str) -> None:
    """An id that no job has is 404, not a conflict."""
    assert client.send(method, path).status == 404
