"""`create_app`: the endpoints of one job table as a FastAPI application."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from sqlalchemy.orm import sessionmaker

from sqla_jobs.errors import JobValueError
from sqla_jobs.http.api import Api
from sqla_jobs.http.gate import Gate
from sqla_jobs.http.guard import Guard
from sqla_jobs.http.health import Probes
from sqla_jobs.http.jobs import Jobs
from sqla_jobs.http.leases import Leases
from sqla_jobs.http.problems import add_handlers
from sqla_jobs.http.queues import Queues
from sqla_jobs.http.rate import RateLimiter
from sqla_jobs.http.tokens import Tokens
from sqla_jobs.models import job_tables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import async_sessionmaker

MAX_BODY = 1_048_576
DESCRIPTION = """\
Enqueue jobs, and work them off in any language: lease some, send heartbeats while they
run, then ack or fail each with the token of its lease. A token whose lease is lost is
answered with 409: somebody else has the job."""


def create_app(
    session_factory: sessionmaker[Any] | async_sessionmaker[Any],
    job_class: type[Any],
    *,
    tokens: Mapping[str, Iterable[str]] | None = None,
    max_body: int = MAX_BODY,
    requests_per_minute: int | None = None,
) -> FastAPI:
    """
    Return a FastAPI application for one job table, to serve or to mount.

    It needs no runner beside it: whoever leases jobs also takes back expired leases,
    stages due jobs and deletes old ones.

    Args:
        session_factory: A sessionmaker, used in threads; or an async_sessionmaker.
        job_class: The root class.
        tokens: Secrets with their scopes, of "enqueue", "work" and "admin", which is
            for reading data, cancelling and requeueing. Default None: all may call.
        max_body: Most bytes of a request. Default 1 MiB.
        requests_per_minute: Of each token, or else of each address; counted in this
            process. Default None, no limit.

    Raises:
        JobValueError: If a token, a scope or a number cannot be used, or the factory is
            none, or not bound to an engine.
        JobDefinitionError: If *job_class* is no job class.
        UnsupportedDialect: If the database is not supported.
    """
    if type(max_body) is not int or max_body < 1:
        raise JobValueError(f"max_body must be 1 or more bytes, got {max_body!r}")
    tables = job_tables(job_class)
    limiter = None
    if requests_per_minute is not None:
        limiter = RateLimiter(requests_per_minute)
    guard = Guard(Tokens.of(tokens), max_body=max_body, limiter=limiter)
    gate, router = Gate(session_factory, tables), APIRouter()
    Probes(gate, tables, router)
    api = Api(tables, gate, guard, router)
    for part in (Jobs, Leases, Queues):
        part(api)
    app = FastAPI(title=f"{tables.table.name}: sqla_jobs", description=DESCRIPTION)
    add_handlers(app, router.routes)
    app.include_router(router)
    if guard.tokens.callers:
        _document_tokens(app)
    return app


def _document_tokens(app: FastAPI) -> None:
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schemes = document["components"].setdefault("securitySchemes", {})
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
