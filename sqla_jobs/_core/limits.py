"""What operators set for a queue, and how many jobs may be admitted now; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from sqla_jobs._core.backoff import Backoff, duration_problem, parse_backoff
from sqla_jobs._core.options import INTEGER, problem_of
from sqla_jobs.errors import JobValueError

ON_DISCARD = ("skip", "block")
"""What a discarded ordered job does to its channel: the next goes on, or it waits."""

RATE_PERIOD = timedelta(seconds=1)
"""The period of a rate that states none."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """
    What is set for one queue; all runners keep to it.

    Args:
        paused: Whether nobody may claim from it.
        fair: Whether its channels are served in turn.
        backoff: For jobs whose class states none, as text; None for the root's.
        max_running: Most jobs that may run at once, in all runners; None for any.
        max_running_per_channel: The same for each channel.
        rate_limit: Most jobs begun per *rate_period*; a token bucket of that size.
        rate_period: None means 1 second.
        on_discard: Whether a discarded ordered job lets its channel go on ("skip") or
            not ("block").
    """

    name: str
    paused: bool = False
    fair: bool = False
    backoff: str | None = None
    max_running: int | None = None
    max_running_per_channel: int | None = None
    rate_limit: int | None = None
    rate_period: timedelta | None = None
    on_discard: str = "skip"

    @property
    def limited(self) -> bool:
        """Whether claims must count before they take."""
        limits = (self.max_running, self.max_running_per_channel, self.rate_limit)
        return any(limit is not None for limit in limits)

    @property
    def managed(self) -> bool:
        """Whether the plain claim leaves the queue to others."""
        return self.fair or self.limited


@dataclass(frozen=True, slots=True)
class Features:
    """
    What the job tables hold that a plain claim does not serve.

    Args:
        ordered: Whether there are ordered jobs that are not final.
        queues: The queues that have a row, by name.
    """

    ordered: bool = False
    queues: Mapping[str, QueueSettings] = field(
        default_factory=lambda: MappingProxyType({})
    )

    @property
    def managed(self) -> tuple[QueueSettings, ...]:
        """The queues that the plain claim leaves alone, paused ones left out."""
        found = self.queues.values()
        return tuple(one for one in found if one.managed and not one.paused)


NO_FEATURES = Features()


# Admission


@dataclass(frozen=True, slots=True)
class Bucket:
    """The tokens of a rate: each job begun takes one, and they come back with time."""

    size: int
    period: timedelta
    tokens: float

    @classmethod
    def of(
        cls,
        settings: QueueSettings,
        *,
        tokens: float | None,
        filled_at: datetime | None,
        now: datetime,
    ) -> Bucket | None:
        """
        Return what the row's bucket holds at *now*; None without a rate.

        Args:
            tokens: What it held at *filled_at*; None means that it is full.
        """
        if settings.rate_limit is None:
            return None
        size, period = settings.rate_limit, settings.rate_period or RATE_PERIOD
        if tokens is None or filled_at is None:
            return cls(size, period, float(size))
        # A clock that went back must not take tokens away.
        passed = max(timedelta(0), now - filled_at)
        return cls(size, period, min(size, tokens + size * (passed / period)))

    @property
    def whole(self) -> int:
        """How many jobs may begin now; a billionth missing is a rounding error."""
        return max(0, int(self.tokens + 1e-9))

    @property
    def next_in(self) -> float:
        """Seconds until one more token is there."""
        missing = self.whole + 1 - self.tokens
        return missing * (self.period.total_seconds() / self.size)


def admitted(
    settings: QueueSettings, *, asked: int, running: int, bucket: Bucket | None
) -> int:
    """Return how many more jobs of a queue may start, of *asked*."""
    slots = [asked]
    if settings.max_running is not None:
        slots.append(settings.max_running - running)
    if bucket is not None:
        slots.append(bucket.whole)
    return max(0, min(slots))


# Checks


def checked_setting(owner: str, name: str, value: Any) -> Any:
    """
    Return the value of a setting as its row holds it.

    Raises:
        JobValueError: If it cannot be used; *owner* is whose it is, for the text.
    """
    if name == "backoff" and isinstance(value, Backoff):
        value = value.spec()
    check = _CHECKS.get(name)
    if check is not None and (problem := check(value)):
        raise JobValueError(f"{owner}: {name}={value!r} {problem}")
    return value


def _name_problem(value: Any) -> str | None:
    return problem_of("queue", value)


def _flag_problem(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


def _count_problem(value: Any) -> str | None:
    if value is None or (type(value) is int and value in INTEGER):
        return None
    return (
        f"must be an integer from 1 to {INTEGER[-1]}, or None for no limit;"
        " paused=True stops a queue"
    )


def _period_problem(value: Any) -> str | None:
    if value is None:
        return None
    if problem := duration_problem(value):
        return problem
    return None if value else "must be above zero"


def _backoff_problem(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return "must be a backoff, e.g. constant(timedelta(seconds=5)), or None"
    if value == "custom":
        return "is a function, which no row can hold; set it on the classes"
    try:
        parse_backoff(value)
    except JobValueError as exc:
        return f"cannot be used: {exc}"
    return None


def _discard_problem(value: Any) -> str | None:
    if value in ON_DISCARD:
        return None
    near = get_close_matches(str(value), ON_DISCARD, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"must be 'skip' or 'block'{hint}"


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "name": _name_problem,
    "paused": _flag_problem,
    "fair": _flag_problem,
    "backoff": _backoff_problem,
    "max_running": _count_problem,
    "max_running_per_channel": _count_problem,
    "rate_limit": _count_problem,
    "rate_period": _period_problem,
    "on_discard": _discard_problem,
}

SETTINGS = tuple(_CHECKS)
"""The settings of a queue, its name first."""
