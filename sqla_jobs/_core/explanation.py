"""Why a job is not running: the possible reasons, worded; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqla_jobs._core.limits import Bucket, QueueSettings
from sqla_jobs._core.options import RAW_KIND
from sqla_jobs._core.states import JobState


class Why(StrEnum):
    """The reasons that `explain` knows."""

    UNKNOWN = "unknown"  # no such row
    ARCHIVED = "archived"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"
    SCHEDULED = "scheduled"  # not yet due
    RETRYABLE = "retryable"  # waits out its backoff
    HELD = "held"  # not yet confirmed
    RUNNING = "running"
    CANCEL_REQUESTED = "cancel_requested"
    LEASE_EXPIRED = "lease_expired"  # its holder is gone, nobody took it back yet
    NO_RUNNER = "no_runner"  # none is alive
    PAUSED = "paused"
    UNKNOWN_KIND = "unknown_kind"  # no live runner has a handler
    NOT_SERVED = "not_served"  # no live runner takes from its queue
    BLOCKED = "blocked"  # a dead letter is earlier in its ordered channel
    ORDERED_BEHIND = "ordered_behind"
    QUEUE_LIMIT = "queue_limit"
    CHANNEL_LIMIT = "channel_limit"
    RATE_LIMIT = "rate_limit"
    SUSPECT = "suspect"  # crashed its runner twice: at most one per process
    WAITING = "waiting"  # nothing hinders it but what comes first


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: *text* is a sentence for people, *details* the facts in it."""

    code: Why
    text: str
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    Why a job is not running, or by whom it is run.

    Args:
        state: None if there is no such job.
        code: The reason that holds it first.
        text: That reason in one sentence, with what to do about it.
        details: The facts in the sentence; times are aware datetimes.
        also: Further reasons, which would hold it next.
    """

    job_id: int
    state: JobState | None
    code: Why
    text: str
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
    also: tuple[Reason, ...] = ()

    def __str__(self) -> str:
        texts = [self.text, *(f"also: {reason.text}" for reason in self.also)]
        return "\n".join([f"job {self.job_id}: {texts[0]}", *texts[1:]])


def explained(
    job_id: int, state: JobState | None, reasons: Sequence[Reason]
) -> Explanation:
    """Return the explanation that consists of *reasons*, the first one first."""
    first, *also = reasons
    return Explanation(
        job_id, state, first.code, first.text, first.details, tuple(also)
    )


# Jobs that are not there or have ended


def no_job(job_id: int) -> Reason:
    """Return the reason of an id that no row has."""
    return Reason(
        Why.UNKNOWN,
        f"there is no job {job_id}: its enqueue is not committed or was rolled back,"
        " or it ended and was deleted by retention",
    )


def archived(state: str, finished: datetime | None, at: datetime) -> Reason:
    """Return the reason of a job that is in the archive."""
    return Reason(
        Why.ARCHIVED,
        f"it ended as {state} and was moved to the archive at {when(at)};"
        " enqueue another one",
        {"state": state, "finished_at": finished, "archived_at": at},
    )


def ended(job: Any) -> Reason:
    """Return the reason of a final job."""
    at = f" at {when(job.finished_at)}" if job.finished_at else ""
    details = {
        "finished_at": job.finished_at,
        "reason": job.reason,
        "attempt": job.attempt,
    }
    if job.state == JobState.COMPLETED:
        return Reason(
            Why.COMPLETED, f"it completed{at}; requeue it to run it again", details
        )
    told = f": {job.reason}" if job.reason else ""
    if job.state == JobState.CANCELLED:
        text = f"it was cancelled{at}{told}; requeue it if it is to run after all"
        return Reason(Why.CANCELLED, text, details)
    error = f" ({_first_line(job.last_error)})" if job.last_error else ""
    return Reason(
        Why.DISCARDED,
        f"it was discarded{at}{told}{error}; mend the cause, then requeue it",
        details | {"last_error": job.last_error},
    )


# Jobs that wait for a time


def waits(job: Any, now: datetime) -> Reason:
    """Return the reason of a job that is scheduled, retryable or held."""
    if job.state == JobState.HELD:
        return _held(job.held_until, now)
    due = job.run_at
    if due > now:
        until = f"it is due at {when(due)}, in {span(due - now)}"
    else:
        until = f"it is due since {when(due)}: a runner stages it at its next poll"
    details = {"run_at": due}
    if job.state == JobState.SCHEDULED:
        return Reason(Why.SCHEDULED, until, details)
    error = f" ({_first_line(job.last_error)})" if job.last_error else ""
    return Reason(
        Why.RETRYABLE,
        f"attempt {job.attempt} of {job.max_attempts} failed{error}; {until}",
        details | {"attempt": job.attempt, "last_error": job.last_error},
    )


def _held(until: datetime | None, now: datetime) -> Reason:
    details = {"held_until": until}
    if until is not None and until <= now:
        text = (
            f"its hold expired at {when(until)}: a runner cancels it at its next poll"
        )
    else:
        time = f" until {when(until)}" if until else ""
        text = f"it is held{time}: confirm_hold() lets it run, expiry cancels it"
    return Reason(Why.HELD, text, details)


# Jobs that run


def runs(job: Any, now: datetime) -> list[Reason]:
    """Return the reasons of a running job; *job* has the columns of its holder."""
    until = job.leased_until
    details = {
        "attempt": job.attempt,
        "runner": job.runner_name,
        "runner_id": job.runner_id,
        "host": job.runner_host,
        "pid": job.runner_pid,
        "since": job.started_at,
        "leased_until": until,
    }
    holder = _holder(job)
    if until is not None and until <= now:
        text = (
            f"its lease expired at {when(until)}: {holder} crashed, hung or lost the"
            " database; a runner takes the job back at its next poll"
        )
        return [Reason(Why.LEASE_EXPIRED, text, details)]
    since = f" since {when(job.started_at)}" if job.started_at else ""
    leased = f", leased until {when(until)}" if until else ""
    attempt = f"attempt {job.attempt} of {job.max_attempts}"
    running = Reason(
        Why.RUNNING, f"it runs: {attempt}, on {holder}{since}{leased}", details
    )
    if job.cancel_requested_at is None:
        return [running]
    asked = Reason(
        Why.CANCEL_REQUESTED,
        f"a cancel was requested at {when(job.cancel_requested_at)}: the attempt ends"
        " at its next heartbeat or checkpoint",
        {"cancel_requested_at": job.cancel_requested_at, "reason": job.reason},
    )
    return [running, asked]


def _holder(job: Any) -> str:
    if job.runner_name is not None:
        return f"{job.runner_name} (host {job.runner_host}, pid {job.runner_pid})"
    if job.runner_id is not None:
        return f"runner {job.runner_id}, which has left"
    return "a worker without a runner"


# What hinders a job that could be claimed


def no_runner(last: Any | None, stale: timedelta) -> Reason:
    """Return the reason where nobody is alive; *last* is the runner seen last."""
    told = f", the last one was {last.name} at {when(last.seen_at)}" if last else ""
    return Reason(
        Why.NO_RUNNER,
        f"no runner was seen in the last {span(stale)}{told}; start one",
        {"last_runner": last.name, "last_seen_at": last.seen_at} if last else {},
    )


def paused(queue: str) -> Reason:
    """Return the reason of a paused queue."""
    return Reason(
        Why.PAUSED,
        f"queue {queue!r} is paused; resume it with set_queue(..., paused=False)",
        {"queue": queue},
    )


def unknown_kind(kind: str, runners: Sequence[Any]) -> Reason:
    """Return the reason of a kind that no live runner handles."""
    return Reason(
        Why.UNKNOWN_KIND,
        f"no live runner has a handler for kind {kind!r}; deploy the code that has"
        " one, or widen the kinds= of a runner",
        {"kind": kind, "runners": [one.name for one in runners]},
    )


def not_served(job: Any, runners: Sequence[Any]) -> Reason:
    """Return the reason of a queue that no runner of the kind takes jobs from."""
    where = f"queue {job.queue!r}"
    if job.channel:
        where += f", channel {job.channel!r}"
    return Reason(
        Why.NOT_SERVED,
        f"no live runner that handles kind {job.kind!r} takes jobs of {where}; widen"
        " the queues= of one",
        {
            "queue": job.queue,
            "channel": job.channel,
            "kind": job.kind,
            "runners": [one.name for one in runners],
        },
    )


def blocked(dead_id: int, queue: str) -> Reason:
    """Return the reason of a channel that stands still behind a dead letter."""
    return Reason(
        Why.BLOCKED,
        f"job {dead_id}, earlier in its ordered channel, was discarded, and queue"
        f" {queue!r} has on_discard='block'; requeue or delete that job",
        {"job_id": dead_id, "queue": queue},
    )


def behind(head: Any, ahead: int, most: int, now: datetime) -> Reason:
    """Return the reason of an ordered job that is not its channel's head."""
    state, until = head.state, head.run_at
    if state == JobState.HELD:
        until = head.held_until
    if state == JobState.RUNNING:
        until = head.leased_until
    told = state
    waiting = state not in {JobState.AVAILABLE, JobState.RUNNING}
    if waiting and until is not None and until > now:
        told = f"{state} until {when(until)}"
    many = f"; {count(ahead, most, 'job')} of the channel come first"
    return Reason(
        Why.ORDERED_BEHIND,
        f"it is ordered behind job {head.id}, which is {told}"
        f"{many if ahead > 1 else ''}",
        {
            "job_id": head.id,
            "state": state,
            "until": until,
            "ahead": min(ahead, most),
            "more": ahead > most,
        },
    )


def beside(running_id: int) -> Reason:
    """Return the reason of a head whose channel has a later job running."""
    return Reason(
        Why.ORDERED_BEHIND,
        f"job {running_id} of its ordered channel is running, and one runs at a time",
        {"job_id": running_id, "state": JobState.RUNNING.value},
    )


def limits(
    settings: QueueSettings,
    job: Any,
    running: Sequence[Any],
    *,
    bucket: Bucket | None,
    now: datetime,
) -> list[Reason]:
    """
    Return the limits of the queue that are reached.

    Args:
        running: A few of its running jobs, those of the job's channel first, each
            with the totals of the queue and of the channel.
        bucket: What the queue's rate leaves at *now*.
    """
    total = running[0].total if running else 0
    same = running[0].in_channel if running else 0
    name, found = settings.name, list[Reason]()
    if settings.max_running is not None and total >= settings.max_running:
        found.append(
            _limited(
                Why.QUEUE_LIMIT,
                f"queue {name!r}",
                settings.max_running,
                total,
                [one.id for one in running],
            )
        )
    most = settings.max_running_per_channel
    if most is not None and same >= most:
        where = f"channel {job.channel!r} of queue {name!r}"
        ids = [one.id for one in running if one.channel == job.channel]
        found.append(_limited(Why.CHANNEL_LIMIT, where, most, same, ids))
    if bucket is not None and not bucket.whole:
        found.append(_rate(name, bucket, now))
    return found


def _limited(
    code: Why, where: str, most: int, running: int, ids: Sequence[int]
) -> Reason:
    names = ", ".join(map(str, ids)) + (", ..." if running > len(ids) else "")
    which = f" ({names})" if ids else ""
    return Reason(
        code,
        f"{where} may run {most} at once, and {running} run{which}; it waits for one"
        " of them to end",
        {"limit": most, "running": running, "jobs": list(ids)},
    )


def _rate(queue: str, bucket: Bucket, now: datetime) -> Reason:
    at = now + timedelta(seconds=bucket.next_in)
    return Reason(
        Why.RATE_LIMIT,
        f"queue {queue!r} may start {bucket.size} per {span(bucket.period)}; the next"
        f" one at {when(at)}",
        {"rate_limit": bucket.size, "rate_period": bucket.period, "next_at": at},
    )


def suspect(crashes: int) -> Reason:
    """Return the reason of a job that has crashed its runner more than once."""
    return Reason(
        Why.SUSPECT,
        f"its runner crashed {crashes} times while it ran; each process runs one such"
        " job at a time",
        {"crashes": crashes},
    )


def in_line(job: Any, ahead: int, most: int, *, where: str) -> Reason:
    """Return the reason of a job that nothing hinders but those before it."""
    details = {
        "queue": job.queue,
        "channel": job.channel,
        "priority": job.priority,
        "ahead": min(ahead, most),
        "more": ahead > most,
    }
    text = f"it is the next one of {where}"
    if ahead:
        verb = "comes" if ahead == 1 else "come"
        text = f"{count(ahead, most, 'job')} of {where} {verb} first"
    then = "a runner takes it when a slot is free"
    if job.kind == RAW_KIND:
        then = "a worker takes it that asks for such jobs"
    return Reason(Why.WAITING, f"{text}; {then}", details)


def count(number: int, most: int, noun: str) -> str:
    """Return a number of things that were counted up to *most* and one more."""
    if number > most:
        return f"more than {most:,} {noun}s"
    return f"{number:,} {noun}{'s' * (number != 1)}"


def when(at: datetime) -> str:
    """Return a time in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(duration: timedelta) -> str:
    """Return a duration in its two largest units."""
    seconds = duration.total_seconds()
    if seconds < 60:
        return f"{seconds:.3g} s"
    parts, rest = [], int(seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2])


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 200 else line[:199] + "…"
