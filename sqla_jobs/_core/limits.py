"""What operators set for a queue, and how many jobs may be admitted now; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """
    The row of one queue, as the runners see it.

    Args:
        fair: Whether its channels are served in turn.
        backoff: For jobs whose class states none, as text; None for the root's.
        max_running: Most jobs that may run at once, in all runners.
        max_running_per_channel: The same for each channel.
        rate_limit: Most jobs begun per *rate_period*; a token bucket of that size.
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
