"""A client for the HTTP interface made of the standard library, and a server."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn


@dataclass(frozen=True)
class Answer:
    """What a request was answered with."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.text)


@dataclass(frozen=True)
class Client:
    """Sends requests to a server, with a token if it has one."""

    port: int
    token: str | None = None

    def with_token(self, token: str | None) -> Client:
        """Return a client for the same server with another token."""
        return Client(self.port, token)

    def get(self, path: str) -> Answer:
        """Send a GET."""
        return self.send("GET", path)

    def post(self, path: str, /, **body: Any) -> Answer:
        """Send a POST with a JSON body."""
        return self.send("POST", path, json.dumps(body).encode())

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        chunked: bool = False,
    ) -> Answer:
        """Send a request; with *chunked* its length is not told."""
        given = {"Content-Type": "application/json"} if body is not None else {}
        if self.token is not None:
            given["Authorization"] = f"Bearer {self.token}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(
                method, path, body, given | (headers or {}), encode_chunked=chunked
            )
            answer = connection.getresponse()
            text = answer.read().decode()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, text)
        finally:
            connection.close()

    def enqueue(self, **body: Any) -> int:
        """Enqueue a job; return its id."""
        answer = self.post("/v1/jobs", **body)
        assert answer.status == 201, answer.text
        return int(answer.json["job_id"])

    def lease(self, queue: str, **body: Any) -> list[dict[str, Any]]:
        """Lease jobs of a queue."""
        answer = self.post("/v1/lease", queue=queue, **body)
        assert answer.status == 200, answer.text
        found: list[dict[str, Any]] = answer.json["jobs"]
        return found


@contextmanager
def serving(app: Any) -> Iterator[Client]:
    """Yield a client of *app*, which a thread of this process serves."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="error",
        ws="none",
        http="h11",
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def notice(*args: Any, **kw: Any) -> None:
        await startup(*args, **kw)
        ready.set()

    server.startup = notice  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(20)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Client(port)
    finally:
        server.should_exit = True
        thread.join(20)
