"""From an outcome to the row that settles its attempt; pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqla_jobs._core.backoff import DEFAULT_BACKOFF, Backoff
from sqla_jobs._core.outcomes import Cancel, Complete, Discard, Outcome, Retry, Snooze
from sqla_jobs._core.payloads import dump, plain_result
from sqla_jobs._core.text import clean_text, error_text, traceback_text
from sqla_jobs.errors import JobValueError

REASON_BYTES = 1_000
SERIALIZATION_DELAY = timedelta(seconds=1)


class Settlement(NamedTuple):
    """What to write for one attempt; `states.SETTLE_RULES` decides the new state."""

    job_id: int
    token: int
    action: str
    delay: float | None = None  # seconds from the database's now
    at: datetime | None = None
    result: str | None = None  # JSON text
    checkpoint: str | None = None  # JSON text; None leaves the saved one
    progress: str | None = None  # likewise
    reason: str | None = None
    error: str | None = None
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """What is known of the attempt being settled."""

    job_id: int
    token: int
    attempt: int
    backoff: Backoff
    rand: float = 0.5  # from [0, 1): spreads the backoff by its jitter


def settle_outcome(
    facts: AttemptFacts, outcome: Outcome, *, checkpoint: str | None = None
) -> Settlement:
    """
    Return the settlement of a returned or raised outcome.

    Raises:
        PayloadError: If the result of `Complete` is not JSON.
        JobValueError: If *outcome* is not one of the five outcomes.
    """
    job_id, token = facts.job_id, facts.token
    match outcome:
        case Complete(result=result):
            return settle_result(job_id, token, result, checkpoint=checkpoint)
        case Retry():
            return _later(facts, "retry", outcome, checkpoint)
        case Snooze():
            return _later(facts, "snooze", outcome, checkpoint)
        case Cancel(reason=reason):
            action = "cancel"
        case Discard(reason=reason):
            action = "discard"
        case _:
            raise JobValueError(f"{outcome!r} is not an outcome of sqla_jobs")
    reason = clean_text(str(reason), REASON_BYTES)
    return Settlement(job_id, token, action, reason=reason, checkpoint=checkpoint)


def settle_result(
    job_id: int, token: int, result: Any, *, checkpoint: str | None = None
) -> Settlement:
    """
    Return the settlement of an attempt that completed.

    Raises:
        PayloadError: If *result* is not JSON.
    """
    text = None if result is None else dump_result(result)
    return Settlement(job_id, token, "complete", result=text, checkpoint=checkpoint)


def settle_error(facts: AttemptFacts, exc: BaseException) -> Settlement:
    """Return the settlement of an attempt that raised *exc*: retry, backed off."""
    return Settlement(
        facts.job_id,
        facts.token,
        "retry",
        delay=_delay(facts).total_seconds(),
        error=error_text(exc),
        traceback=traceback_text(exc),
    )


def settle_conflict(
    facts: AttemptFacts, exc: BaseException, *, counted: bool = True
) -> Settlement:
    """
    Return the settlement of a serialization failure: again within 0 to 1 s.

    Args:
        counted: Whether the attempt is. Default True.
    """
    delay = SERIALIZATION_DELAY.total_seconds() * facts.rand
    action = "retry" if counted else "snooze"
    return Settlement(
        facts.job_id, facts.token, action, delay=delay, error=error_text(exc)
    )


def settle_release(facts: AttemptFacts) -> Settlement:
    """Return the settlement that hands the job back; the attempt is not counted."""
    return Settlement(facts.job_id, facts.token, "release")


def dump_result(value: object) -> str:
    """
    Return *value* as JSON text; a pydantic model or msgspec struct in its JSON form.

    Raises:
        PayloadError: If it is not JSON.
    """
    return dump(plain_result(value), "result")


def _delay(facts: AttemptFacts) -> timedelta:
    """A custom backoff that fails must not make the failure unrecordable."""
    try:
        return facts.backoff.delay(facts.attempt, facts.rand)
    except JobValueError:
        return DEFAULT_BACKOFF.delay(facts.attempt, facts.rand)


def _later(
    facts: AttemptFacts, action: str, outcome: Retry | Snooze, checkpoint: str | None
) -> Settlement:
    delay = outcome.after
    if delay is None and outcome.at is None:
        delay = _delay(facts)
    reason = outcome.reason and clean_text(str(outcome.reason), REASON_BYTES)
    return Settlement(
        facts.job_id,
        facts.token,
        action,
        delay=None if delay is None else delay.total_seconds(),
        at=outcome.at,
        reason=reason,
        error=reason if action == "retry" else None,
        checkpoint=checkpoint,
    )
