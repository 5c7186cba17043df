"""Endpoints for workers: lease jobs, hold them, and say what became of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from sqla_jobs._core.options import RAW_KIND
from sqla_jobs._core.payloads import dump
from sqla_jobs._core.states import JobState
from sqla_jobs._core.text import ERROR_LIMIT, clean_text
from sqla_jobs._store import verbs
from sqla_jobs._store.claim import Claim, claim
from sqla_jobs._store.enqueue_kind import class_of_kind
from sqla_jobs._store.held import find_claim, find_rows
from sqla_jobs._store.lease import Held as HeldLease
from sqla_jobs._store.lease import fence, settled_state
from sqla_jobs.errors import JobValueError, LeaseLost
from sqla_jobs.http.api import Api, no_job, plain
from sqla_jobs.http.jobs import JobId
from sqla_jobs.http.problems import refused_fields
from sqla_jobs.http.schemas import (
    AckRequest,
    CheckpointRequest,
    FailRequest,
    HeartbeatRequest,
    Held,
    HolderRequest,
    LeaseAnswer,
    LeaseRequest,
    NewState,
    SnoozeRequest,
)
from sqla_jobs.http.upkeep import Upkeep

T = TypeVar("T")
Verb = Callable[[Session, Claim], T]
LOST = "is not held with this token; its lease expired, or it has ended"


class Leases:
    """The verbs of a worker; all but the lease itself need the lease's token."""

    def __init__(self, api: Api) -> None:
        self._api, self._tables = api, api.tables
        self._upkeep = Upkeep(api.gate, api.tables)
        add = partial(api.add, scopes=("work",))
        add(
            *("POST", "/v1/lease", self.lease),
            model=LeaseAnswer,
            refuses=(413, 415),
        )
        add = partial(add, refuses=(404, 409, 413, 415))
        one = "/v1/jobs/{job_id}"
        add("POST", f"{one}/ack", self.ack, model=NewState)
        add("POST", f"{one}/fail", self.fail, model=NewState)
        add("POST", f"{one}/heartbeat", self.heartbeat, model=Held)
        add("POST", f"{one}/checkpoint", self.checkpoint, model=Held)
        add("POST", f"{one}/release", self.release, model=NewState)
        add("POST", f"{one}/snooze", self.snooze, model=NewState)

    async def lease(self, body: LeaseRequest) -> dict[str, Any]:
        """Lease up to *limit* available jobs of a queue."""
        kinds = self._kinds_of(body.kinds)
        await self._upkeep.run_if_due()

        def work(session: Session) -> list[dict[str, Any]]:
            claims = claim(
                session,
                self._tables.root,
                queues=[body.queue],
                kinds=kinds,
                limit=body.limit,
                lease=timedelta(milliseconds=body.lease_ms),
            )
            ids = [one.job_id for one in claims]
            rows = find_rows(session, self._tables, ids) if ids else {}
            return [_leased(one, rows[one.job_id]) for one in claims]

        return {"jobs": await self._api.gate.run(work)}

    async def ack(self, job_id: JobId, body: AckRequest) -> NewState:
        """Complete a job; the same ack again is answered as the first one."""

        def work(session: Session) -> None:
            try:
                claim = self._claim(session, job_id, body.token)
            except LeaseLost:
                if not self._is_completed(session, job_id, body.token):
                    raise
            else:
                verbs.complete(session, claim, body.result)

        await self._fenced(job_id, work)
        return NewState(job_id=job_id, state=JobState.COMPLETED)

    async def fail(self, job_id: JobId, body: FailRequest) -> NewState:
        """Record a failure: the job waits for another attempt, or is discarded."""
        after = None
        if body.retry_ms is not None:
            after = timedelta(milliseconds=body.retry_ms)

        def verb(session: Session, claim: Claim) -> str:
            if body.discard:
                verbs.discard(session, claim, body.reason)
                return JobState.DISCARDED
            text = clean_text(body.reason, ERROR_LIMIT)
            return verbs.fail(session, claim, text, retry_after=after)

        return NewState(job_id=job_id, state=await self._do(job_id, body, verb))

    async def heartbeat(self, job_id: JobId, body: HeartbeatRequest) -> Held:
        """Extend the lease; says whether the job should end."""
        return await self._hold(job_id, body, None)

    async def checkpoint(self, job_id: JobId, body: CheckpointRequest) -> Held:
        """Save a state for the next attempt, and extend the lease."""
        return await self._hold(job_id, body, dump(body.state))

    async def release(self, job_id: JobId, body: HolderRequest) -> NewState:
        """Hand the job back at once; the attempt is not counted."""
        await self._do(job_id, body, verbs.release)
        return await self._now(job_id)

    async def snooze(self, job_id: JobId, body: SnoozeRequest) -> NewState:
        """Hand the job back for later; the attempt is not counted."""
        after = timedelta(milliseconds=body.delay_ms)
        verb = partial(verbs.snooze, after=after, reason=body.reason)
        await self._do(job_id, body, verb)
        return await self._now(job_id)

    async def _hold(
        self, job_id: int, body: HeartbeatRequest, state: str | None
    ) -> Held:
        lease = timedelta(milliseconds=body.extend_ms)

        def verb(session: Session, claim: Claim) -> HeldLease:
            held = fence(
                session,
                self._tables,
                claim.job_id,
                claim.token,
                lease=lease,
                at_least=lease,
                checkpoint=state,
            )
            if held is None:
                raise LeaseLost(claim.job_id, claim.attempt)
            return held

        held = await self._do(job_id, body, verb)
        return Held(
            leased_until=held.leased_until, cancel_requested=held.cancel_requested
        )

    async def _do(self, job_id: int, body: HolderRequest, verb: Verb[T]) -> T:
        def work(session: Session) -> T:
            return verb(session, self._claim(session, job_id, body.token))

        return await self._fenced(job_id, work)

    async def _fenced(self, job_id: int, work: Callable[[Session], T]) -> T:
        """
        Run a verb.

        Raises:
            Refused: With 409 if the lease is lost; it tells the job's state.
        """
        try:
            return await self._api.gate.run(work)
        except LeaseLost as exc:
            raise await self._api.conflict(job_id, LOST) from exc

    async def _now(self, job_id: int) -> NewState:
        # A requested cancel wins over a release and a snooze.
        row = await self._api.row(job_id)
        return NewState(job_id=job_id, state=row.state)

    def _claim(self, session: Session, job_id: int, token: int) -> Claim:
        found = find_claim(session, self._tables, job_id, token)
        if found is None:
            raise no_job(job_id)
        return found

    def _is_completed(self, session: Session, job_id: int, token: int) -> bool:
        state = settled_state(session, self._tables, job_id, token)
        return state is JobState.COMPLETED

    def _kinds_of(self, kinds: list[str]) -> list[str]:
        """Return kinds with their aliases."""
        found = []
        for number, kind in enumerate(kinds):
            if kind == RAW_KIND:
                found.append(kind)
                continue
            try:
                options = class_of_kind(self._tables, kind).__job_options__
            except JobValueError as exc:
                raise refused_fields({f"kinds.{number}": str(exc)}) from exc
            found += [options.kind, *options.aliases]
        return found


def _leased(claim: Claim, row: Any) -> dict[str, Any]:
    return {**plain(row), "token": claim.token, "state": claim.state}
