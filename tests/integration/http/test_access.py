"""Who may call what, how often, and with how much."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs.errors import JobValueError
from sqla_jobs.http import create_app, read_tokens
from sqla_jobs.http.rate import MAX_CLIENTS, RateLimiter
from sqla_jobs.http.tokens import Tokens
from tests.integration.http.conftest import TOKENS, Job
from tests.integration.http.kit import Client, serving

ENDPOINTS: list[tuple[str, str, set[str]]] = [
    ("POST", "/v1/jobs", {"enqueue"}),
    ("POST", "/v1/lease", {"work"}),
    ("POST", "/v1/jobs/1/ack", {"work"}),
    ("POST", "/v1/jobs/1/fail", {"work"}),
    ("POST", "/v1/jobs/1/heartbeat", {"work"}),
    ("POST", "/v1/jobs/1/checkpoint", {"work"}),
    ("POST", "/v1/jobs/1/release", {"work"}),
    ("POST", "/v1/jobs/1/snooze", {"work"}),
    ("GET", "/v1/jobs/1", {"admin"}),
    ("GET", "/v1/jobs/1/status", {"enqueue", "work", "admin"}),
    ("POST", "/v1/jobs/1/cancel", {"admin"}),
    ("POST", "/v1/jobs/1/requeue", {"admin"}),
    ("DELETE", "/v1/jobs/1", {"admin"}),
    ("GET", "/v1/queues", {"admin"}),
    ("GET", "/v1/queues/q/depth", {"admin"}),
    ("GET", "/v1/queues/q/dead", {"admin"}),
]


def test_every_endpoint_is_in_the_list(guarded: Client) -> None:
    """The table above, which the tests of scopes go through, misses no endpoint."""
    document = guarded.get("/openapi.json").json
    found = {
        (method.upper(), path.format(job_id=1, queue="q"))
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith("/v1")
    }

    assert found == {(method, path) for method, path, _ in ENDPOINTS}


@pytest.mark.parametrize(("method", "path", "scopes"), ENDPOINTS)
def test_endpoint_asks_for_its_scope(
    guarded: Client, session: Session, method: str, path: str, scopes: set[str]
) -> None:
    """Without a token 401, with one of another scope 403; before the body is read."""
    for token in (None, "unknown", "enqueue-secre", "enqueue-secrett"):
        answer = guarded.with_token(token).send(method, path, b"{not json")
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for scope in ("enqueue", "work", "admin"):
        client = guarded.with_token(f"{scope}-secret")
        answer = client.send(method, path, b"{not json")
        assert (answer.status == 403) is (scope not in scopes), answer.text


def test_wrong_scope_learns_nothing_of_the_data(
    guarded: Client, session: Session
) -> None:
    """Whoever may not read data gets none of it, not even whether a job is there."""
    everything = guarded.with_token("all-secret")
    job_id = everything.enqueue(queue="q", payload={"password": "hunter2"})

    for token in (None, "enqueue-secret", "work-secret"):
        client = guarded.with_token(token)
        answers = [client.get(f"/v1/jobs/{n}") for n in (job_id, 999_999)]
        assert answers[0].text == answers[1].text
        assert "hunter2" not in client.get(f"/v1/jobs/{job_id}/status").text
    assert "hunter2" in everything.get(f"/v1/jobs/{job_id}").text


@pytest.mark.parametrize("header", ["Basic YTpi", "Bearer", "bearer\tx", "all-secret"])
def test_other_headers_are_no_token(guarded: Client, header: str) -> None:
    """Only the scheme Bearer is read."""
    answer = guarded.send("GET", "/v1/queues", headers={"Authorization": header})

    assert answer.status == 401


def test_scheme_is_read_in_any_case(guarded: Client) -> None:
    """As RFC 7235 has it."""
    headers = {"Authorization": "bEaReR admin-secret"}

    assert guarded.send("GET", "/v1/queues", headers=headers).status == 200


def test_probes_need_no_token(guarded: Client, session: Session) -> None:
    """A probe has no secret to send."""
    assert guarded.get("/healthz").json == {"status": "ok", "reasons": []}
    assert guarded.get("/readyz").json == {"status": "ok", "reasons": []}


def test_tokens_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each token is compared, as digests of one length, whichever fits."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    tokens = Tokens.of(TOKENS)

    first = tokens.find("Bearer enqueue-secret")

    assert first is not None
    assert first.scopes == {"enqueue"}
    assert compared == [(32, 32)] * len(TOKENS)
    assert "secret" not in repr(tokens)


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ({}, "tokens is empty"),
        ({"": {"work"}}, "token 1 must be printable"),
        ({"top secret": {"work"}}, "token 1 must be printable"),
        ({"sécret": {"work"}}, "token 1 must be printable"),
        ({"hidden": {"wrok"}}, "unknown scope 'wrok'; did you mean 'work'"),
        ({"hidden": "work"}, "must be a set of names"),
        ({"hidden": set()}, "token 1 has no scope"),
    ],
)
def test_unusable_token_is_refused(
    maker: sessionmaker[Session], tokens: dict[str, Any], problem: str
) -> None:
    """A wrong token is an error when the application is made; it is not shown."""
    with pytest.raises(JobValueError, match=problem) as caught:
        create_app(maker, Job, tokens=tokens)

    assert "hidden" not in str(caught.value)


def test_tokens_are_read_from_text() -> None:
    """Tokens of a variable or a file: scopes and a secret, which may hold a "="."""
    text = "# producers\nenqueue=abc==\n\n  work,admin=def enqueue=#ghi\n"

    assert read_tokens(text) == {
        "abc==": {"enqueue"},
        "def": {"work", "admin"},
        "#ghi": {"enqueue"},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hidden", "token 1 is not"),
        ("work=a enqueue=", "token 2 must be printable"),
        ("wrok=hidden", "unknown scope 'wrok'"),
        ("=hidden", "unknown scope ''"),
        ("work=hidden admin=hidden", "token 2 is there twice"),
    ],
)
def test_unreadable_tokens_are_refused_unshown(text: str, problem: str) -> None:
    """The message tells which token is wrong and why, not what it is."""
    with pytest.raises(JobValueError, match=problem) as caught:
        read_tokens(text)

    assert "hidden" not in str(caught.value)


def test_body_above_the_limit_is_refused(client: Client, session: Session) -> None:
    """A large body is 413: by the length it tells, unread, or else by what was read."""
    body = b'{"queue": "q"}' + b" " * 1_100_000
    parts = [body[at : at + 60_000] for at in range(0, len(body), 60_000)]
    chunked = {"Transfer-Encoding": "chunked"}

    announced = client.send(
        "POST", "/v1/jobs", b"", headers={"Content-Length": "9999999"}
    )
    whole = client.send("POST", "/v1/jobs", body)
    untold = client.send("POST", "/v1/jobs", iter(parts), headers=chunked, chunked=True)
    small = client.send(
        "POST", "/v1/jobs", iter([b'{"queue":', b'"q"}']), headers=chunked, chunked=True
    )

    assert (announced.status, whole.status, untold.status) == (413, 413, 413)
    assert small.status == 201


def test_other_content_types_are_refused(client: Client, session: Session) -> None:
    """What a web page may send without asking, such as text/plain, is not read."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.send(
            "POST", "/v1/jobs", b'{"queue": "q"}', headers={"Content-Type": kind}
        )
        assert answer.status == 415
    with_charset = {"Content-Type": "application/json; charset=utf-8"}
    answer = client.send("POST", "/v1/jobs", b'{"queue": "q"}', headers=with_charset)
    assert answer.status == 201


@pytest.fixture(scope="module")
def limited(maker: sessionmaker[Session]) -> Iterator[Client]:
    """Yield a client of a service with three requests per minute."""
    app = create_app(maker, Job, tokens=TOKENS, requests_per_minute=3)
    with serving(app) as client:
        yield client


def test_too_many_requests_are_told_to_wait(limited: Client, session: Session) -> None:
    """Each token has its bucket, guesses that of their address; probes have none."""
    admin, worker = (limited.with_token(f"{who}-secret") for who in ("admin", "work"))

    statuses = [admin.get("/v1/jobs/999").status for _ in range(4)]
    late = admin.get("/v1/jobs/999")

    assert statuses == [404, 404, 404, 429]
    assert 1 <= int(late.headers["retry-after"]) <= 20
    assert worker.get("/v1/jobs/999/status").status == 404
    forged = [
        limited.with_token(f"guess {n}").send(
            "GET", "/v1/queues", headers={"X-Forwarded-For": f"10.0.0.{n}"}
        )
        for n in range(4)
    ]
    assert [one.status for one in forged] == [401, 401, 401, 429]
    assert limited.get("/healthz").status == 200


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        """Return the time that is set."""
        return self.now


def test_bucket_fills_again_and_memory_is_bounded() -> None:
    """A client may call again once its bucket has a request; few are remembered."""
    clock = Clock()
    limiter = RateLimiter(60, clock=clock)  # type: ignore[arg-type]

    waits = [limiter.seconds_to_wait("a") for _ in range(61)]
    clock.now = 0.5
    still = limiter.seconds_to_wait("a")
    clock.now = 1.0
    again = [limiter.seconds_to_wait("a") for _ in range(2)]

    assert waits == [0] * 60 + [1]
    assert (still, again) == (1, [0, 1])
    for n in range(MAX_CLIENTS + 10):
        limiter.seconds_to_wait(n)
    assert len(limiter._buckets) == MAX_CLIENTS


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_unusable_limits_are_refused(maker: sessionmaker[Session], number: Any) -> None:
    """Limits are whole numbers of 1 or more."""
    with pytest.raises(JobValueError, match="requests_per_minute"):
        create_app(maker, Job, requests_per_minute=number)
    with pytest.raises(JobValueError, match="max_body"):
        create_app(maker, Job, max_body=number)
