"""Probes: the process lives; the database answers and has the tables."""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from sqla_jobs._store.base import connection_of
from sqla_jobs._store.schema import check
from sqla_jobs.errors import SchemaMismatch
from sqla_jobs.http.gate import Gate
from sqla_jobs.http.problems import Refused
from sqla_jobs.http.schemas import Health
from sqla_jobs.models import JobTables


class Probes:
    """Open to all: they tell nothing of jobs."""

    def __init__(self, gate: Gate, tables: JobTables, router: APIRouter) -> None:
        self._gate, self._tables = gate, tables
        router.add_api_route("/healthz", self.live, response_model=Health)
        router.add_api_route(
            "/readyz",
            self.ready,
            response_model=Health,
            responses={503: {"model": Health, "description": "Not ready."}},
        )

    async def live(self) -> Health:
        """Return that the process lives."""
        return Health(status="ok")

    async def ready(self, response: Response) -> Health:
        """Return whether the database answers, and has the tables of the code."""
        try:
            reasons = await self._gate.run(self._differences)
        except Refused as exc:
            reasons = [exc.problem.detail]
        if reasons:
            response.status_code = 503
        return Health(status="unavailable" if reasons else "ok", reasons=reasons)

    def _differences(self, session: Session) -> list[str]:
        try:
            check(connection_of(session, self._tables), self._tables.root)
        except SchemaMismatch as exc:
            return str(exc).splitlines()
        return []
