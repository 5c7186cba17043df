"""Endpoints for those who enqueue jobs, and for those who look after them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

from fastapi import Path, Response
from sqlalchemy.orm import Session

from sqla_jobs._core.options import RAW_KIND
from sqla_jobs._core.states import FINAL
from sqla_jobs._store.dead import history
from sqla_jobs._store.enqueue_kind import class_of_kind, make_job, read_arguments
from sqla_jobs._store.enqueue_one import Enqueued as Found
from sqla_jobs._store.enqueue_one import enqueue
from sqla_jobs._store.operate import request_cancel, requeue
from sqla_jobs._store.retention import purge
from sqla_jobs.errors import JobValueError, PayloadError
from sqla_jobs.http.api import Api, plain, without_secrets
from sqla_jobs.http.problems import Refused, refused_fields
from sqla_jobs.http.schemas import (
    BIGINT,
    AttemptRow,
    Cancelled,
    CancelRequest,
    Enqueued,
    EnqueueRequest,
    JobDetails,
    JobStatus,
    NewState,
    RequeueRequest,
)
from sqla_jobs.models.arg import dump_payload

JobId = Annotated[int, Path(ge=1, le=BIGINT, description="As the enqueue gave it.")]
OPTIONS = (
    *("queue", "channel", "priority", "max_attempts", "run_at"),
    *("ordered", "unique_key", "on_conflict", "fingerprint", "tags"),
)


class Jobs:
    """Enqueue, look, cancel, requeue, delete."""

    def __init__(self, api: Api) -> None:
        self._api, self._root = api, api.tables.root
        admin, any_scope = ("admin",), ("enqueue", "work", "admin")
        api.add(
            *("POST", "/v1/jobs", self.enqueue),
            scopes=("enqueue",),
            model=Enqueued,
            status=201,
            refuses=(409, 413, 415),
            responses={200: {"model": Enqueued, "description": "It was there."}},
        )
        one = "/v1/jobs/{job_id}"
        add = partial(api.add, scopes=admin, refuses=(404,))
        add("GET", one, self.show, model=JobDetails)
        api.add(
            *("GET", f"{one}/status", self.status),
            scopes=any_scope,
            model=JobStatus,
            refuses=(404,),
        )
        add = partial(api.add, scopes=admin, refuses=(404, 409, 413, 415))
        add("POST", f"{one}/cancel", self.cancel, model=Cancelled)
        add("POST", f"{one}/requeue", self.requeue, model=NewState)
        add("DELETE", one, self.delete, model=NewState)

    async def enqueue(self, body: EnqueueRequest, response: Response) -> Enqueued:
        """Enqueue a job."""
        found = await self._api.gate.run(partial(self._enqueue, body=body))
        if not found.created:
            response.status_code = 200
        return Enqueued(job_id=found.job_id, created=found.created)

    async def show(self, job_id: JobId) -> dict[str, Any]:
        """Return a job with its data and the attempts that did not complete."""
        row = await self._api.row(job_id)

        def read(session: Session) -> list[AttemptRow]:
            found = history(session, self._root, job_id)
            return [AttemptRow.model_validate(one) for one in found]

        shown = without_secrets(self._api.tables, plain(row))
        return {**shown, "attempts": await self._api.gate.run(read)}

    async def status(self, job_id: JobId) -> dict[str, Any]:
        """Return where a job is in its life, without its data."""
        return plain(await self._api.row(job_id))

    async def cancel(
        self, job_id: JobId, body: CancelRequest | None = None
    ) -> Cancelled:
        """Cancel a job: a waiting one at once; one that runs is asked to end."""
        reason = (body or CancelRequest()).reason
        done = await self._run(request_cancel, [job_id], reason=reason)
        row = await self._api.row(job_id)
        if job_id in done.unchanged:
            raise await self._api.conflict(job_id, f"is {row.state} already")
        requested = job_id in done.requested
        return Cancelled(job_id=job_id, state=row.state, cancel_requested=requested)

    async def requeue(
        self, job_id: JobId, body: RequeueRequest | None = None
    ) -> NewState:
        """Make a final job available again, with fresh attempts and its history."""
        keep = (body or RequeueRequest()).keep_state
        done = await self._run(requeue, [job_id], keep_state=keep)
        if job_id in done.duplicates:
            raise await self._api.conflict(
                job_id, "has a unique key that a live job holds"
            )
        if job_id not in done.requeued:
            raise await self._api.conflict(job_id, "is not final")
        return NewState(job_id=job_id, state="available")

    async def delete(self, job_id: JobId) -> NewState:
        """Delete a final job with its attempts."""
        if not await self._run(purge, ids=job_id, states=FINAL):
            raise await self._api.conflict(job_id, "is not final")
        return NewState(job_id=job_id, state="deleted")

    async def _run(self, verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return await self._api.gate.run(
            lambda session: verb(session, self._root, *args, **options)
        )

    def _enqueue(self, session: Session, body: EnqueueRequest) -> Found:
        return enqueue(
            session,
            self._job_of(body),
            idempotency_key=body.idempotency_key,
            window=timedelta(milliseconds=body.idempotency_window_ms),
        )

    def _job_of(self, body: EnqueueRequest) -> Any:
        """Return the job; what is wrong with its arguments is told by their names."""
        self._check_arguments(body)
        options = {name: getattr(body, name) for name in OPTIONS}
        if body.payload_bytes is not None:
            options["payload_bytes"] = base64.b64decode(body.payload_bytes)
        if body.delay_ms is not None:
            options["delay"] = timedelta(milliseconds=body.delay_ms)
        try:
            job = make_job(self._root, body.kind, body.payload, **options)
        except TypeError as exc:
            raise Refused(422, str(exc)) from exc
        self._check_size(job)
        return job

    def _check_arguments(self, body: EnqueueRequest) -> None:
        if body.kind == RAW_KIND:
            return
        try:
            job_class = class_of_kind(self._api.tables, body.kind)
        except JobValueError as exc:
            raise refused_fields({"kind": str(exc)}) from exc
        _, problems = read_arguments(job_class, body.payload)
        if problems:
            named = {f"payload.{name}": text for name, text in problems.items()}
            raise refused_fields(named)

    def _check_size(self, job: Any) -> None:
        try:
            dump_payload(type(job), job.payload)
        except PayloadError as exc:
            raise Refused(413, exc.hidden or str(exc)) from exc
