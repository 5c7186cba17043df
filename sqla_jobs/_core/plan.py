"""What a runner does next: pure, the shells only wait and call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqla_jobs._core.subscriptions import (
    Subscription,
    check_subscriptions,
    names_only,
    subscription_of,
)
from sqla_jobs.errors import JobValueError

HOT_SECONDS = 0.15  # longer than a NOTIFY suppresses later ones, and their COMMITs take
HOT_POLLS = 0.012, 0.05  # the first, when a NOTIFY suppresses no more; and the longest
COOLDOWN = 0.003  # lets slots gather, so that a claim takes several jobs
CLAIM_SHARE = 5  # in a flood, that many times as long as a claim took
MAX_COOLDOWN = 0.05
RETRY_SHARE = 0.1  # of a runner that states none
LATE_REST = 16  # full claims until the next look for late jobs, if there were none
MAX_PENDING = 2_000  # outcomes not yet written; more would only grow
ANY = ""  # the one backlog flag of a runner without slots per queue


Queues = Mapping[Subscription, int] | Mapping[str, int] | Sequence[Subscription]
"""What ``queues=`` may be: slots by subscription, or subscriptions that share them."""


@dataclass(frozen=True, slots=True)
class Claim:
    """
    Claim up to *limit* jobs; per subscription where *queues* says so.

    Up to *late* retried jobs, and as many rescued ones, come before fresh ones.
    """

    limit: int
    queues: Mapping[Subscription, int] | None
    late: int = 0


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rescue, stage and report."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for *seconds*, unless woken."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Everything claimed has ended."""


Step = Claim | Sweep | Wait | Stop


@dataclass(frozen=True, slots=True)
class Slots:
    """
    How many jobs may run: at most *most*, refilled when fewer than *least* run; and
    per subscription, if *queues* gives numbers.
    """

    least: int
    most: int
    queues: Mapping[Subscription, int] | None = None
    names: Sequence[Subscription] | None = None

    @staticmethod
    def of(
        concurrency: int | tuple[int, int] | None,
        queues: Queues | None,
    ) -> Slots:
        """
        Return the slots that a runner's options mean.

        Raises:
            JobValueError: If a number is below 1, the pair is not ascending, or a
                queue is named twice, not at all, or by what is no subscription.
        """
        given: Any = queues
        per_queue = dict(given) if isinstance(queues, Mapping) else None
        names = None if queues is None else _names(queues)
        for queue, slots in (per_queue or {}).items():
            _check_count(f"queues[{queue!r}]", slots)
        if concurrency is None:
            concurrency = sum(per_queue.values()) if per_queue else 10
        if not isinstance(concurrency, tuple):
            _check_count("concurrency", concurrency)
            return Slots(concurrency, concurrency, per_queue, names)
        for place, value in enumerate(concurrency):
            _check_count(f"concurrency[{place}]", value)
        pair = list(concurrency)
        if len(pair) != 2 or pair != sorted(pair):
            raise JobValueError(
                f"concurrency must be (min, max) with min <= max, got {concurrency}"
            )
        least, most = concurrency
        return Slots(least, most, per_queue, names)

    def source(self, queue: str, channel: str) -> Subscription:
        """Return the subscription whose slot a job takes."""
        if self.queues is None:
            return ANY
        return subscription_of(self.queues, queue, channel) or queue


def _names(queues: Queues) -> list[Subscription]:
    if isinstance(queues, str):
        raise JobValueError(f"queues must be a list or a mapping, got {queues!r}")
    names = check_subscriptions(queues)
    if not names or len(set(names)) != len(names):
        raise JobValueError(f"queues must name each queue once, got {names}")
    return names


def _check_count(name: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise JobValueError(f"{name} must be a whole number of 1 or more, got {value}")


def _asked(step: Claim) -> list[tuple[Subscription, int]]:
    """Return the subscriptions that a claim has slots for."""
    return [(queue, slots) for queue, slots in (step.queues or {}).items() if slots]


@dataclass(slots=True)
class Plan:
    """
    The state of one runner's loop. Times are monotonic seconds, given by the caller.

    Args:
        slots: How many jobs may run at once.
        poll: Seconds between looks at an idle database.
        burst: Whether to stop once nothing is left to run now.
        retry_share: The part of the jobs claimed in a flood that may be retried ones
            before fresh ones, and that may be rescued ones; 0 to 1.
    """

    slots: Slots
    poll: float
    burst: bool = False
    retry_share: float = 0.0
    running: int = 0
    unsettled: int = 0
    stopping: bool = False
    _per_queue: dict[Subscription, int] = field(default_factory=dict)
    _backlog: dict[Subscription, bool] = field(default_factory=dict)
    _credit: float = 0.0  # late jobs that may come with the next claim
    _late_rest: int = 0  # full claims until they may
    _claim_at: float = 0.0
    _claimed_at: float = float("-inf")
    _cooldown: float = COOLDOWN
    _sweep_at: float = 0.0
    _hot_until: float = float("-inf")
    _hot_poll: float = HOT_POLLS[0]
    _woken: bool = False  # since the last claim was sent, which may not have seen why
    _away_until: float = float("-inf")
    _quiet: bool = False  # nothing ran when the last claim was sent
    _empty: bool = False  # it found nothing, and nothing runs
    _idle: bool = False  # nor did the sweep after it
    _swept_last: bool = False  # no claim has come since the last sweep

    def next_step(self, now: float) -> Step:
        """Return what to do at *now*."""
        if self.stopping or (self.burst and self._idle):
            if self.running or self.unsettled:
                return Wait(self.poll)
            return Stop()
        if now < self._away_until:
            return Wait(self._away_until - now)
        return self._next_work(now)

    def _next_work(self, now: float) -> Step:
        wanted = self._wanted()
        due = float("inf") if wanted is None else self._claim_due(wanted)
        # In turn: a long row of due jobs to stage must not keep claims waiting.
        if now >= self._sweep_at and not (self._swept_last and now >= due):
            return Sweep()
        if wanted is not None and now >= due:
            self._quiet = not self.running and not self.unsettled
            self._woken = False
            return wanted
        return Wait(max(0.0, min(self._sweep_at, due) - now))

    def _wanted(self) -> Claim | None:
        """Return the claim that the free slots allow."""
        free = self.slots.most - self.running
        if free <= 0 or self.unsettled >= max(MAX_PENDING, 4 * self.slots.most):
            return None
        if self.slots.least < self.slots.most and self.running >= self.slots.least:
            return None
        if self.slots.queues is not None:
            open_slots = self._open_slots(self.slots.queues)
            free = min(free, sum(open_slots.values()))
            return Claim(free, open_slots, self._late(free)) if free > 0 else None
        if self.slots.names is not None:
            names = dict.fromkeys(self.slots.names, free)
            return Claim(free, names, self._late(free))
        return Claim(free, None, self._late(free))

    def _open_slots(
        self, queues: Mapping[Subscription, int]
    ) -> dict[Subscription, int]:
        """Return the free slots; one without keeps its jobs from other patterns."""
        free = {
            queue: max(0, slots - self._per_queue.get(queue, 0))
            for queue, slots in queues.items()
        }
        if not names_only(free):
            return free
        return {queue: slots for queue, slots in free.items() if slots > 0}

    def _late(self, limit: int) -> int:
        return 0 if self._late_rest > 0 else min(limit, int(self._credit))

    def _claim_due(self, wanted: Claim) -> float:
        if not self._has_backlog(wanted):
            return self._claim_at
        half_free = 2 * wanted.limit >= self.slots.most
        return self._claimed_at + (0.0 if half_free else self._cooldown)

    def _has_backlog(self, wanted: Claim) -> bool:
        if self.slots.queues is None:
            return self._backlog.get(ANY, False)
        return any(self._backlog.get(queue, False) for queue, _ in _asked(wanted))

    def claimed(
        self,
        now: float,
        step: Claim,
        by_queue: Mapping[Any, int],
        *,
        late: int = 0,
        took: float = 0.0,
    ) -> None:
        """
        Note what a claim returned: how many jobs of each subscription.

        Args:
            late: How many of them were retried or rescued.
            took: The seconds that it took; the next one rests for some times that, or
                a few slots of short jobs would keep the runner claiming.
        """
        self._cooldown = min(MAX_COOLDOWN, max(COOLDOWN, CLAIM_SHARE * took))
        self._note_claim(now, step, by_queue)
        self._note_late(step, by_queue, late)

    def _note_late(
        self, step: Claim, by_queue: Mapping[Subscription, int], late: int
    ) -> None:
        """Earn places for late jobs in a flood; without one all get their turn."""
        got = sum(by_queue.values())
        if got < step.limit and all(by_queue.get(q, 0) < n for q, n in _asked(step)):
            self._credit = 0.0
            return
        self._credit += got * self.retry_share - step.late
        self._late_rest -= 1
        if step.late and not late:
            self._credit, self._late_rest = 0.0, LATE_REST

    def _note_claim(
        self,
        now: float,
        step: Claim,
        by_queue: Mapping[Subscription, int],
    ) -> None:
        got = sum(by_queue.values())
        self._claimed_at = now
        self._swept_last = False
        self.running += got
        self._empty = self._idle = False
        for queue, count in by_queue.items():
            self._per_queue[queue] = self._per_queue.get(queue, 0) + count
        full = got >= step.limit
        if self.slots.queues is None:
            self._backlog[ANY] = full
        else:
            for queue, asked in _asked(step):
                self._backlog[queue] = full or by_queue.get(queue, 0) >= asked
        self._claim_at = now + self._pause(now, found=got > 0)
        if self.burst and not self.running and not self.unsettled:
            self._found_nothing(now)

    def _pause(self, now: float, *, found: bool) -> float:
        """Return seconds until the next look without a reason."""
        if self._woken or now >= self._hot_until:
            return 0.0 if self._woken else self.poll
        first, longest = HOT_POLLS
        pause = first if found else self._hot_poll
        self._hot_poll = min(longest, 2 * pause)
        return min(pause, self.poll)

    def _found_nothing(self, now: float) -> None:
        """Note an empty claim; one that an end overtook did not see what that left."""
        if self._quiet:
            self._empty = True
            self._sweep_at = now
        else:
            self._claim_at = now

    def finished(self, queue: Subscription) -> bool:
        """
        Note that a slot of a subscription is free again.

        Returns:
            Whether the loop should look.
        """
        self.running -= 1
        self._empty = False
        self._per_queue[queue] = self._per_queue.get(queue, 0) - 1
        if self.stopping or self.burst:
            self._look_if_last()
            if not self.running:
                return True
        if self.slots.queues is not None:
            return self._backlog.get(queue, False)
        return self._backlog.get(ANY, False) and self._brings_claim_forward()

    def _brings_claim_forward(self) -> bool:
        """
        Return whether the slot that was freed last did so.

        To wake the loop for each job would cost as much as a short job does.
        """
        half_free = self.running == self.slots.most // 2
        return half_free or self.running == self.slots.least - 1

    def settled(self, count: int) -> None:
        """Note that *count* outcomes were written."""
        self.unsettled -= count
        if self.burst:
            self._look_if_last()

    def _look_if_last(self) -> None:
        """At the end of a burst one claim tells whether it is the end."""
        if not self.running and not self.unsettled:
            self._claim_at = float("-inf")

    def woke(self, now: float) -> None:
        """Note a NOTIFY: look now, and for a while more often."""
        self._hot_until = now + HOT_SECONDS
        self._hot_poll, _ = HOT_POLLS
        self._woken = True
        self._claim_at = now
        self._empty = self._idle = False

    def look(
        self, now: float, seconds: float = 0.0, *, unfinished: bool = True
    ) -> None:
        """
        Note that a claim in *seconds* may find what the last one could not.

        Args:
            unfinished: Whether it may be ready already, so that a burst is not over.
        """
        at = max(now + seconds, self._claimed_at + COOLDOWN)
        self._claim_at = min(self._claim_at, at)
        if unfinished:
            self._empty = self._idle = False
            if self.burst:
                self._sweep_at = max(self._sweep_at, self._claim_at)

    def due_in(self, now: float, seconds: float) -> None:
        """Note that a job this runner settled will be due in *seconds*."""
        self._sweep_at = min(self._sweep_at, now + max(0.0, seconds))
        if seconds <= 0:
            self._empty = self._idle = False

    def swept(self, now: float, *, moved: int, next_due: float | None) -> None:
        """Note a sweep that made *moved* jobs available; *next_due* in seconds."""
        wait = self.poll if next_due is None else min(self.poll, next_due)
        self._sweep_at = now + wait
        self._swept_last = True
        self._idle = self._empty and not moved
        if moved or (self.burst and not self._idle):
            self._claim_at = now

    def away(self, now: float, seconds: float) -> None:
        """Note that the database is away: nothing for *seconds*."""
        self._away_until = now + seconds

    def stop(self) -> None:
        """Claim nothing more."""
        self.stopping = True
