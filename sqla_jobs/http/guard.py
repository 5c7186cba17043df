"""The door: token, rate and size are looked at before a body is read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from sqla_jobs.http.problems import Refused
from sqla_jobs.http.rate import RateLimiter
from sqla_jobs.http.tokens import Caller, Tokens

Handler = Callable[[Request], Awaitable[Response]]


class Guard:
    """
    Lets a request in, or refuses it.

    Args:
        max_body: Most bytes of a body.
        limiter: None lets each client call as often as it likes.
    """

    def __init__(
        self, tokens: Tokens, *, max_body: int, limiter: RateLimiter | None
    ) -> None:
        self.tokens, self.max_body, self._limiter = tokens, max_body, limiter

    def admit(self, request: Request, scopes: frozenset[str]) -> None:
        """
        Let in whoever has one of *scopes*, and has not called too often.

        Raises:
            Refused: With 401, 403 or 429.
        """
        caller = self.tokens.find(request.headers.get("authorization"))
        self._check_rate(request, caller)
        if not self.tokens.callers:
            return
        if caller is None:
            sent = "authorization" in request.headers
            error = ' error="invalid_token"' if sent else ""
            text = "the token is unknown" if sent else "a bearer token is needed"
            headers = {"WWW-Authenticate": f"Bearer{error}"}
            raise Refused(401, text, headers=headers)
        if not scopes & caller.scopes:
            listed = " or ".join(sorted(scopes))
            wanted = f'Bearer error="insufficient_scope", scope="{min(scopes)}"'
            headers = {"WWW-Authenticate": wanted}
            raise Refused(403, f"the token lacks the scope {listed}", headers=headers)

    def _check_rate(self, request: Request, caller: Caller | None) -> None:
        if self._limiter is None:
            return
        # The peer's address, not what a header says of it.
        address = request.client.host if request.client else ""
        wait = self._limiter.seconds_to_wait(caller.digest if caller else address)
        if wait:
            headers = {"Retry-After": str(wait)}
            raise Refused(429, f"too many requests; wait {wait} s", headers=headers)

    def route_class(self, *scopes: str) -> type[APIRoute]:
        """Return the class of routes for callers with one of *scopes*."""
        guard, wanted = self, frozenset(scopes)

        class GuardedRoute(APIRoute):
            def get_route_handler(self) -> Any:
                handle: Handler = super().get_route_handler()

                async def guarded(request: Request) -> Response:
                    guard.admit(request, wanted)
                    bounded = BoundedRequest(request.scope, request.receive)
                    bounded.max_body = guard.max_body
                    return await handle(bounded)

                return guarded

        return GuardedRoute


class BoundedRequest(Request):
    """A request whose body is JSON of a bounded size."""

    max_body = 0
    _bounded: bytes | None = None

    async def body(self) -> bytes:
        """
        Return the body; it is read no further than the bound.

        Raises:
            Refused: With 413 if it is larger, 415 if it is something else than JSON.
        """
        if self._bounded is None:
            self._check_length(self._declared_length())
            chunks, size = [], 0
            async for chunk in self.stream():
                size += len(chunk)
                self._check_length(size)
                chunks.append(chunk)
            self._bounded = b"".join(chunks)
            if self._bounded:
                self._check_type()
        return self._bounded

    async def json(self) -> Any:
        """
        Return the parsed body.

        Raises:
            Refused: With 422 if it is not JSON, or of a kind that Python cannot hold.
        """
        body = await self.body()
        try:
            return json.loads(body)  # fields refuse NaN themselves
        except RecursionError:
            raise Refused(422, "the body is nested too deep") from None
        except ValueError:  # no JSON, no UTF-8, or a number of thousands of digits
            raise Refused(422, "the body is not valid JSON") from None

    def _declared_length(self) -> int:
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() and len(text) < 20 else 0

    def _check_length(self, size: int) -> None:
        if size > self.max_body:
            text = f"the body is above the limit of {self.max_body:,} bytes"
            raise Refused(413, text)

    def _check_type(self) -> None:
        # A browser sends other types across origins without asking.
        sent = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sent != "application/json":
            raise Refused(415, "send the body as Content-Type: application/json")
