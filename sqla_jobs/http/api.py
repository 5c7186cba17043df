"""What all endpoints share: tables, transactions, the door, and how they are added."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from sqla_jobs._store.held import find_rows
from sqla_jobs.http.gate import Gate
from sqla_jobs.http.guard import Guard
from sqla_jobs.http.problems import Refused, documented
from sqla_jobs.models import JobTables
from sqla_jobs.models.arg import masked

Endpoint = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Api:
    """
    The parts that endpoints are made of.

    Args:
        router: Where they are added.
    """

    tables: JobTables
    gate: Gate
    guard: Guard
    router: APIRouter

    def add(
        self,
        method: str,
        path: str,
        endpoint: Endpoint,
        *,
        scopes: tuple[str, ...],
        model: Any,
        refuses: tuple[int, ...] = (),
        status: int = 200,
        responses: dict[int | str, dict[str, Any]] | None = None,
    ) -> None:
        """Add an endpoint for callers with one of *scopes*."""
        secured = bool(self.guard.tokens.callers)
        self.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            status_code=status,
            response_model=model,
            responses={**documented(*refuses), **(responses or {})},
            tags=[scopes[0]],
            openapi_extra={"security": [{"bearer": list(scopes)}]} if secured else None,
            route_class_override=self.guard.route_class(*scopes),
        )

    async def row(self, job_id: int) -> Any:
        """
        Return the library's columns of a job.

        Raises:
            Refused: With 404 if there is none.
        """
        found = await self.gate.run(lambda s: find_rows(s, self.tables, [job_id]))
        if job_id not in found:
            raise no_job(job_id)
        return found[job_id]

    async def conflict(self, job_id: int, why: str) -> Refused:
        """Return the refusal of what the job's state forbids, with that state."""
        row = await self.row(job_id)
        return Refused(409, f"job {job_id} {why}", state=row.state, job_id=job_id)


def no_job(job_id: int) -> Refused:
    """Return the answer about an id that no job has."""
    return Refused(404, f"there is no job {job_id}", job_id=job_id)


def plain(row: Any) -> dict[str, Any]:
    """Return a row, or a mapping, by column name; its bytes in base64."""
    values = dict(getattr(row, "_mapping", row))
    data = values.get("payload_bytes")
    if data is not None:
        values["payload_bytes"] = base64.b64encode(data).decode()
    return values


def without_secrets(tables: JobTables, values: dict[str, Any]) -> dict[str, Any]:
    """Return a job's values as a reader may see them: secret arguments are masked."""
    job_class = tables.kinds.get(values["kind"])
    return {**values, "payload": masked(job_class, values["payload"])}
