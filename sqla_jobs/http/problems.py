"""What goes wrong, as answers that repeat neither secrets nor values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import BaseRoute, Match

from sqla_jobs._core.conceal import conceal
from sqla_jobs._core.text import clean_text
from sqla_jobs.errors import DuplicateJob, JobValueError
from sqla_jobs.http.schemas import Issue, Problem

MAX_TEXT = 1_000
"""Bytes of a text in an answer that is about the request."""

MAX_ISSUES = 50

TEXTS = {
    401: "No token, or an unknown one.",
    403: "The token lacks the scope.",
    404: "There is no such job.",
    409: "The job's state, or another row, forbids it.",
    413: "The body, or the payload, is too large.",
    415: "The body is not sent as application/json.",
    422: "The request is not valid.",
    429: "Too many requests; Retry-After says how long to wait.",
    503: "The database does not answer, or lacks the tables.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI texts of these refusals and of those of every request."""
    every = {401, 403, 422, 429, 503}
    return {
        status: {"model": Problem, "description": TEXTS[status]}
        for status in sorted(every.union(statuses))
    }


class Refused(HTTPException):
    """A request that is answered with a `Problem`."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Iterable[Issue] = (),
        headers: dict[str, str] | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(status, detail, headers)
        self.problem = Problem(detail=_clean(detail), errors=list(errors), **facts)


def refused_fields(problems: dict[str, str]) -> Refused:
    """Return the refusal of fields of the body, by their names."""
    issues = [issue(field, text) for field, text in problems.items()]
    return Refused(422, _summary(issues), errors=issues[:MAX_ISSUES])


def issue(field: str, problem: str) -> Issue:
    """Return what is wrong with a field, in texts that any answer can hold."""
    return Issue(field=_clean(field), problem=_clean(problem))


def add_handlers(app: FastAPI, routes: Iterable[BaseRoute]) -> None:
    """Let every error that a request to one of *routes* can cause have its answer."""

    async def refused(request: Request, exc: StarletteHTTPException) -> JSONResponse:
        if exc.status_code == 405:  # FastAPI names the methods of one route only
            exc.headers = {"Allow": _allowed(request, routes)}
        return await _refused(request, exc)

    handlers: dict[Any, Any] = {
        StarletteHTTPException: refused,
        RequestValidationError: _invalid,
        JobValueError: _unusable,
        DuplicateJob: _duplicate,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


def _allowed(request: Request, routes: Iterable[BaseRoute]) -> str:
    fitting = [one for one in routes if one.matches(request.scope)[0] != Match.NONE]
    methods = {name for one in fitting for name in getattr(one, "methods", ())}
    return ", ".join(sorted(methods))


async def _refused(_: Request, exc: StarletteHTTPException) -> JSONResponse:
    problem = getattr(exc, "problem", None) or Problem(detail=_clean(str(exc.detail)))
    headers = dict(exc.headers) if exc.headers else None
    return _answer(exc.status_code, problem, headers)


async def _invalid(_: Request, exc: RequestValidationError) -> JSONResponse:
    # What pydantic keeps of the input is left out.
    issues = [
        issue(_place(one["loc"]), one["msg"].removeprefix("Value error, "))
        for one in exc.errors()
    ]
    return _answer(422, Problem(detail=_summary(issues), errors=issues[:MAX_ISSUES]))


async def _unusable(_: Request, exc: JobValueError) -> JSONResponse:
    conceal(exc)
    return _answer(422, Problem(detail=_clean(str(exc))))


async def _duplicate(_: Request, exc: DuplicateJob) -> JSONResponse:
    text = "a live job has the same unique key"
    return _answer(409, Problem(detail=text, job_id=exc.job_id))


def _answer(
    status: int, problem: Problem, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(problem.model_dump(mode="json"), status, headers)


def _place(loc: Iterable[Any]) -> str:
    where = ".".join(map(str, loc))
    return where.removeprefix("body.")


def _summary(issues: list[Issue]) -> str:
    return _clean("; ".join(f"{one.field}: {one.problem}" for one in issues[:5]))


def _clean(text: str) -> str:
    return clean_text(text, MAX_TEXT)
