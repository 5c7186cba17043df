"""Bad input is the caller's error, 4xx with a text, and never the server's."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from sqlalchemy.orm import Session

from tests.integration.http.conftest import row
from tests.integration.http.kit import Client

TEXTS = {
    "nan": '{"queue": "q", "payload": {"a": NaN}}',
    "infinity": '{"queue": "q", "payload": {"a": -Infinity}}',
    "float above all": '{"queue": "q", "payload": {"a": 1e999}}',
    "nul": r'{"queue": "q", "payload": {"a": "\u0000"}}',
    "nul in a key": r'{"queue": "q", "payload": {"\u0000": 1}}',
    "nul in the queue": r'{"queue": "\u0000"}',
    "surrogate": r'{"queue": "q", "payload": {"a": ["\ud800"]}}',
    "surrogate in the queue": r'{"queue": "\ud800"}',
    "surrogate as a field": r'{"queue": "q", "\ud800": 1}',
    "surrogate as the kind": r'{"queue": "q", "kind": "\ud800"}',
    "nul in a tag": r'{"queue": "q", "tags": ["\u0000"]}',
    "huge int": '{"queue": "q", "payload": {"a": ' + "9" * 5_000 + "}}",
    "deep": '{"queue": "q", "payload": {"a": ' + "[" * 70 + "]" * 70 + "}}",
    "very deep": '{"queue": "q", "payload": {"a": '
    + "[" * 99_999
    + "]" * 99_999
    + "}}",
    "long queue": '{"queue": "' + "ä" * 101 + '"}',
    "empty queue": '{"queue": ""}',
    "no object": '["queue"]',
    "a text": '"queue"',
    "null": "null",
    "nothing": "",
    "cut": '{"queue": ',
    "payload is a list": '{"queue": "q", "payload": [1]}',
    "payload is a text": '{"queue": "q", "payload": "{}"}',
    "unknown field": '{"queue": "q", "qeue": "q"}',
    "no base64": '{"queue": "q", "payload_bytes": "a"}',
    "priority": '{"queue": "q", "priority": 32768}',
    "priority is a bool": '{"queue": "q", "priority": true}',
    "max_attempts": '{"queue": "q", "max_attempts": 0}',
    "max_attempts of a text": '{"queue": "q", "max_attempts": "3"}',
    "naive time": '{"queue": "q", "run_at": "2026-01-31T12:00:00"}',
    "time as a number": '{"queue": "q", "run_at": 1700000000}',
    "far away": '{"queue": "q", "delay_ms": 9007199254740993}',
    "negative delay": '{"queue": "q", "delay_ms": -1}',
    "policy without a key": '{"queue": "q", "on_conflict": "skip"}',
    "unknown policy": '{"queue": "q", "unique_key": "a", "on_conflict": "drop"}',
    "long key": '{"queue": "q", "idempotency_key": "' + "k" * 201 + '"}',
    "no window": '{"queue": "q", "idempotency_key": "k", "idempotency_window_ms": 0}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_unusable_job_is_422(client: Client, text: str) -> None:
    """What cannot be enqueued is 422 with a short text, and no job is made."""
    answer = client.send("POST", "/v1/jobs", text.encode())

    assert answer.status == 422, answer.text
    assert 0 < len(answer.json["detail"]) < 1_100
    assert len(answer.text) < 10_000
    assert client.get("/v1/queues").json == {"queues": []}


def test_body_that_is_not_utf8_is_422(client: Client) -> None:
    """Bytes that are no text are no JSON."""
    assert client.send("POST", "/v1/jobs", b'{"queue": "\xff"}').status == 422


@pytest.mark.parametrize(
    "body",
    [
        {"lease_ms": 2_999},
        {"lease_ms": 86_400_001},
        {"lease_ms": 2**32 + 5_000},
        {"lease_ms": 5_000.5},
        {"lease_ms": "5000"},
        {"limit": 0},
        {"limit": 501},
        {"limit": True},
        {"kinds": []},
        {"kinds": "raw"},
        {"kinds": ["\0"]},
        {"queue": "x" * 201},
        {"queue": None},
    ],
)
def test_unusable_lease_is_422(client: Client, body: dict[str, Any]) -> None:
    """Numbers out of range are refused, not cut."""
    assert client.post("/v1/lease", **({"queue": "q"} | body)).status == 422


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/0",
        "/v1/jobs/-1",
        "/v1/jobs/x",
        "/v1/jobs/1e3",
        f"/v1/jobs/{2**63}",
        f"/v1/jobs/{'9' * 400}",
        "/v1/queues/%00/dead",
        "/v1/queues/%00/depth",
        f"/v1/queues/{'x' * 201}/depth",
        "/v1/queues/q/dead?limit=0",
        "/v1/queues/q/dead?limit=501",
        "/v1/queues/q/dead?limit=x",
        f"/v1/queues/q/dead?before_id={2**64}",
    ],
)
def test_unusable_path_or_query_is_422(client: Client, path: str) -> None:
    """Ids and limits that no column holds are refused before the database is asked."""
    assert client.get(path).status == 422


def test_answer_repeats_no_value(client: Client) -> None:
    """A refusal names fields and types; what was sent in them stays unsaid."""
    bodies: list[dict[str, Any]] = [
        {"kind": "send", "payload": {"subject": ["hunter2"]}},
        {"queue": "q", "payload": {"a": "hunter2\0"}},
        {"queue": "q", "payload": "hunter2"},
        {"queue": "q", "max_attempts": "hunter2"},
        {"queue": "q", "payload_bytes": "hunter2!"},
        {"queue": "q", "run_at": "hunter2"},
    ]

    for body in bodies:
        answer = client.post("/v1/jobs", **body)
        assert answer.status == 422
        assert "hunter2" not in answer.text


VALUES: list[Any] = [
    None, True, 0, -1, 1, 3_000, 2**31, 2**53, 2**63, 2**70, 1.5, 1e308, "", "x", "raw",
    "\0", "\ud800", "ü" * 150, "2026-01-31T12:00:00Z",
    "9999-12-31T23:59:59.999999-23:59",
    "0001-01-01T00:00:00+23:59", [], ["x"], [None], {}, {"a": 1}, {"a": {"b": ["\0"]}},
]  # fmt: skip
FIELDS = {
    "": [
        *("kind", "queue", "channel", "payload", "payload_bytes", "priority"),
        *("max_attempts", "run_at", "delay_ms", "ordered", "unique_key"),
        *("on_conflict", "fingerprint", "idempotency_key", "tags"),
    ],
    "/ack": ["token", "result"],
    "/fail": ["token", "reason", "retry_ms", "discard"],
    "/heartbeat": ["token", "extend_ms"],
    "/checkpoint": ["token", "state", "extend_ms"],
    "/snooze": ["token", "delay_ms", "reason"],
    "/cancel": ["reason"],
    "/requeue": ["keep_state"],
}


def test_no_combination_of_values_is_the_servers_fault(
    client: Client, session: Session
) -> None:
    """Whatever is in whichever field, it is below 500, and jobs stay readable."""
    rng = random.Random(7)
    seen: set[int] = set()
    for _ in range(200):
        verb = rng.choice(sorted(FIELDS))
        path = "/v1/jobs"
        body: dict[str, Any] = {"queue": "q"}
        if verb:
            job_id = client.enqueue(queue=f"q{rng.random()}")
            body = {"token": 1} if "token" in FIELDS[verb] else {}
            client.lease(client.get(f"/v1/jobs/{job_id}").json["queue"])
            path = f"/v1/jobs/{job_id}{verb}"
        for name in rng.choices(FIELDS[verb], k=2):
            body[name] = rng.choice(VALUES)
        answer = client.send("POST", path, json.dumps(body).encode())
        seen.add(answer.status)
        assert answer.status < 500, (path, body, answer.text)
        found = answer.json.get("job_id")
        if found is not None and answer.status < 300:
            assert client.get(f"/v1/jobs/{found}").status == 200
            assert row(session, found)
    assert seen == {200, 201, 409, 422}
