"""The life of a job, as a table. Every rule about states lives in this file."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is in its life; stored as text."""

    SCHEDULED = "scheduled"  # due later, outside the claim index
    AVAILABLE = "available"  # may be claimed
    RUNNING = "running"  # leased by one attempt
    RETRYABLE = "retryable"  # failed, waits out its backoff
    HELD = "held"  # two-phase: has its place, is not yet confirmed by its owner
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"  # the dead letters


S = JobState
STATES: dict[str, JobState] = {str(state): state for state in JobState}
"""By the stored text."""

TRANSITIONS: dict[JobState, dict[JobState, str]] = {
    S.SCHEDULED: {S.AVAILABLE: "stage", S.CANCELLED: "cancel"},
    S.AVAILABLE: {S.RUNNING: "claim", S.CANCELLED: "cancel"},
    S.RUNNING: {
        S.COMPLETED: "complete",
        S.RETRYABLE: "retry",
        S.SCHEDULED: "snooze",
        S.CANCELLED: "cancel",
        S.DISCARDED: "discard",
        S.AVAILABLE: "release, rescue",
    },
    S.RETRYABLE: {S.AVAILABLE: "stage", S.CANCELLED: "cancel"},
    S.HELD: {
        S.AVAILABLE: "confirm",
        S.SCHEDULED: "confirm",
        S.CANCELLED: "cancel, abort, expire",
    },
    S.COMPLETED: {S.AVAILABLE: "requeue"},
    S.CANCELLED: {S.AVAILABLE: "requeue"},
    S.DISCARDED: {S.AVAILABLE: "requeue"},
}
"""From each state, the states a job may go to and the verb that moves it."""

FINAL = frozenset({S.COMPLETED, S.CANCELLED, S.DISCARDED})
"""States without further work; retention deletes jobs in them."""

LIVE = frozenset(JobState) - FINAL
"""States that still lead to an attempt; they hold the unique key."""

WAITING = frozenset({S.SCHEDULED, S.RETRYABLE})
"""States that staging turns into `available` once ``run_at`` has come."""

CANCELLABLE = LIVE - {S.RUNNING}
"""States a request to cancel ends at once; a running job is only asked."""


class Lane:
    """The order inside one priority: fresh jobs, then retried, then rescued."""

    FRESH = 0
    RETRIED = 1
    RESCUED = 2


def diagram() -> str:
    """Return the life of a job as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    lines += ["    [*] --> scheduled: run_at, delay", "    [*] --> available: add"]
    lines += ["    [*] --> held: hold_for"]
    for source, targets in TRANSITIONS.items():
        lines += [f"    {source} --> {to}: {verb}" for to, verb in targets.items()]
    lines += [f"    {state} --> [*]: purge" for state in JobState if state in FINAL]
    return "\n".join(lines) + "\n"


SETTLE_RULES: tuple[tuple[str, str | None, JobState], ...] = (
    ("complete", None, S.COMPLETED),
    ("cancel", None, S.CANCELLED),
    ("discard", None, S.DISCARDED),
    ("snooze", "cancel_requested", S.CANCELLED),
    ("snooze", None, S.SCHEDULED),
    ("release", "cancel_requested", S.CANCELLED),
    ("release", None, S.AVAILABLE),
    ("retry", "cancel_requested", S.CANCELLED),
    ("retry", "exhausted", S.DISCARDED),
    ("retry", None, S.RETRYABLE),
    ("rescue", "cancel_requested", S.CANCELLED),
    ("rescue", "exhausted", S.DISCARDED),
    ("rescue", "poison", S.DISCARDED),
    ("rescue", None, S.AVAILABLE),
)
"""
How a running job leaves `running`: (action, condition, state), first match wins.

The conditions hold in the row at that moment (a cancel may have been requested since
the claim), so the settle statement evaluates them; its CASE is made from this table.
"""

SUSPECT_CRASHES = 2
"""A job with this many crashes runs at most one per process."""
