"""
The low-level verbs on a `Claim`: for workers without a Runner.

A verb that finds its lease lost rolls the session's whole transaction back before it
raises `LeaseLost`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs._core.outcomes import Cancel, Complete, Discard, Outcome, Retry, Snooze
from sqla_jobs._core.payloads import check_json, dump
from sqla_jobs._core.settle import (
    AttemptFacts,
    Settlement,
    settle_error,
    settle_outcome,
    settle_release,
)
from sqla_jobs._core.states import JobState
from sqla_jobs._core.text import ERROR_LIMIT, clean_text
from sqla_jobs._store.claim import DEFAULT_LEASE, Claim, check_lease
from sqla_jobs._store.lease import fence, renew_many
from sqla_jobs._store.settle import settle
from sqla_jobs.errors import JobValueError, LeaseLost
from sqla_jobs.models.backoffs import backoff_for


def complete(
    session: Session, claim: Claim, result: Any = None, *, now: datetime | None = None
) -> None:
    """
    Record that the claimed job succeeded; takes effect when the caller commits.

    Args:
        result: A JSON value to keep in the row. Default None.

    Raises:
        LeaseLost: If the claim no longer holds the job.
        PayloadError: If *result* is not JSON.
    """
    _settle_outcome(session, claim, Complete(result), now)


def fail(
    session: Session,
    claim: Claim,
    error: BaseException | str,
    *,
    retry_at: datetime | None = None,
    retry_after: timedelta | None = None,
    now: datetime | None = None,
) -> JobState:
    """
    Record that the attempt failed and return the job's new state; does not commit.

    The job waits out its backoff, or exactly until *retry_at* or *retry_after*; on the
    last attempt it is `discarded`.

    Raises:
        LeaseLost: If the claim no longer holds the job.
        JobValueError: If both times are given, *retry_at* is naive, or *retry_after* is
            negative.
    """
    when = Retry(at=retry_at, after=retry_after)
    exc = error if isinstance(error, BaseException) else Exception(error)
    failure = settle_error(_facts(claim), exc)
    if exc is not error:  # a text: nothing of ours around it
        text = clean_text(str(error), ERROR_LIMIT)
        failure = failure._replace(error=text, traceback=None)
    if when.at is not None:
        failure = failure._replace(delay=None, at=when.at)
    elif when.after is not None:
        failure = failure._replace(delay=when.after.total_seconds())
    return _settle_one(session, claim, failure, now)


def snooze(
    session: Session,
    claim: Claim,
    *,
    at: datetime | None = None,
    after: timedelta | None = None,
    reason: str | None = None,
    now: datetime | None = None,
) -> None:
    """
    Put the job back until *at* or *after*; the attempt is given back; does not commit.

    Raises:
        LeaseLost: If the claim no longer holds the job.
        JobValueError: If not exactly one time is given, or it is naive or negative.
    """
    _settle_outcome(session, claim, Snooze(reason, at=at, after=after), now)


def cancel(
    session: Session,
    claim: Claim,
    reason: str = "cancelled by its worker",
    *,
    now: datetime | None = None,
) -> None:
    """
    End the claimed job as `cancelled`; does not commit.

    Raises:
        LeaseLost: If the claim no longer holds the job.
    """
    _settle_outcome(session, claim, Cancel(reason), now)


def discard(
    session: Session,
    claim: Claim,
    reason: str = "discarded by its worker",
    *,
    now: datetime | None = None,
) -> None:
    """
    End the claimed job as `discarded`, a dead letter; does not commit.

    Raises:
        LeaseLost: If the claim no longer holds the job.
    """
    _settle_outcome(session, claim, Discard(reason), now)


def release(session: Session, claim: Claim, *, now: datetime | None = None) -> None:
    """
    Hand the job back at once; the attempt is not counted; does not commit.

    Raises:
        LeaseLost: If the claim no longer holds the job.
    """
    _settle_one(session, claim, settle_release(_facts(claim)), now)


def renew(
    session: Session,
    claims: Claim | Iterable[Claim],
    *,
    lease: timedelta = DEFAULT_LEASE,
    now: datetime | None = None,
) -> frozenset[int]:
    """
    Renew the leases of one claim or of many in one statement; does not commit.

    Returns the ids of jobs that a cancel request asks to end.

    Args:
        lease: Length from now, 3 s or more, unless the job sets its own. Default 30 s.

    Raises:
        LeaseLost: For the first job that is no longer held. The others are renewed, if
            the caller commits; when none is held, the transaction is rolled back.
        JobValueError: If *lease* is below 3 s.
    """
    check_lease(lease)
    held = [claims] if isinstance(claims, Claim) else list(claims)
    if not held:
        return frozenset()
    pairs = [(claim.job_id, claim.token) for claim in held]
    renewed = renew_many(session, held[0].tables, pairs, lease=lease, now=now)
    for claim in held:
        if renewed.is_lost(claim.job_id, claim.token):
            if not renewed.held:  # else their renewals may be committed
                session.rollback()
            raise LeaseLost(claim.job_id, claim.attempt)
    return renewed.cancelled


def checkpoint(
    session: Session,
    claim: Claim,
    state: Mapping[str, Any] | None = None,
    *,
    extra_attempts: int = 0,
    lease: timedelta = DEFAULT_LEASE,
    now: datetime | None = None,
) -> bool:
    """
    Save *state* and renew the lease; does not commit.

    Returns whether a cancel was requested. The row stays locked until the caller
    commits, so domain writes and checkpoint take effect together or not at all.

    Args:
        state: The whole new state; None keeps the saved one.
        extra_attempts: Raises ``max_attempts``, 0 or more. Default 0.
        lease: Length from now, 3 s or more, unless the job sets its own. Default 30 s.

    Raises:
        LeaseLost: If the claim no longer holds the job.
        JobValueError: If *extra_attempts* is negative or *lease* is below 3 s.
        PayloadError: If *state* is not JSON.
    """
    check_lease(lease)
    check_extra(extra_attempts)
    text = None
    if state is not None:
        check_json(dict(state), "state")
        text = dump(dict(state))
    held = fence(
        session,
        claim.tables,
        claim.job_id,
        claim.token,
        lease=lease,
        checkpoint=text,
        extra_attempts=extra_attempts,
        now=now,
    )
    if held is None:
        raise _lost(session, claim)
    return held.cancel_requested


def check_extra(extra_attempts: int) -> None:
    """
    Raise JobValueError if *extra_attempts* is negative.

    Raises:
        JobValueError: As said.
    """
    if extra_attempts < 0:
        raise JobValueError(f"extra_attempts must be 0 or more, got {extra_attempts}")


def _facts(claim: Claim) -> AttemptFacts:
    backoff = backoff_for(claim.tables, claim.kind, claim.backoff, claim.queue_backoff)
    rand = random.random()  # noqa: S311 - spreads retries, keeps no secret
    return AttemptFacts(claim.job_id, claim.token, claim.attempt, backoff, rand)


def _settle_outcome(
    session: Session, claim: Claim, outcome: Outcome, now: datetime | None
) -> None:
    _settle_one(session, claim, settle_outcome(_facts(claim), outcome), now)


def _settle_one(
    session: Session, claim: Claim, settlement: Settlement, now: datetime | None
) -> JobState:
    states = settle(session, claim.tables, [settlement], now=now)
    if claim.job_id not in states:
        raise _lost(session, claim)
    return states[claim.job_id]


def _lost(session: Session, claim: Claim) -> LeaseLost:
    """Roll back, so that a caller who swallows the error cannot commit the rest."""
    session.rollback()
    return LeaseLost(claim.job_id, claim.attempt)
