"""What a runner does next: pure, the shells only wait and call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqla_jobs.errors import JobValueError

HOT_SECONDS = 0.15  # longer than a NOTIFY suppresses later ones (0.05 s)
HOT_POLL = 0.02
COOLDOWN = 0.003  # lets slots gather, so that a claim takes several jobs
MAX_PENDING = 2_000  # outcomes not yet written; more would only grow
ANY = ""  # the one backlog flag of a runner without slots per queue


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim up to *limit* jobs; per queue where *queues* says so."""

    limit: int
    queues: Mapping[str, int] | None


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
    per queue, if *queues* gives numbers.
    """

    least: int
    most: int
    queues: Mapping[str, int] | None = None
    names: Sequence[str] | None = None

    @staticmethod
    def of(
        concurrency: int | tuple[int, int] | None,
        queues: Mapping[str, int] | Sequence[str] | None,
    ) -> Slots:
        """
        Return the slots that a runner's options mean.

        Raises:
            JobValueError: If a number is below 1, the pair is not ascending, or a
                queue is named twice or not at all.
        """
        per_queue = dict(queues) if isinstance(queues, Mapping) else None
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


def _names(queues: Mapping[str, int] | Sequence[str]) -> list[str]:
    if isinstance(queues, str):
        raise JobValueError(f"queues must be a list or a mapping, got {queues!r}")
    names = list(queues)
    if not names or len(set(names)) != len(names):
        raise JobValueError(f"queues must name each queue once, got {names}")
    return names


def _check_count(name: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise JobValueError(f"{name} must be a whole number of 1 or more, got {value}")


@dataclass(slots=True)
class Plan:
    """
    The state of one runner's loop. Times are monotonic seconds, given by the caller.

    Args:
        slots: How many jobs may run at once.
        poll: Seconds between looks at an idle database.
        burst: Whether to stop once nothing is left to run now.
    """

    slots: Slots
    poll: float
    burst: bool = False
    running: int = 0
    unsettled: int = 0
    stopping: bool = False
    _per_queue: dict[str, int] = field(default_factory=dict)
    _backlog: dict[str, bool] = field(default_factory=dict)
    _claim_at: float = 0.0
    _claimed_at: float = float("-inf")
    _sweep_at: float = 0.0
    _hot_until: float = float("-inf")
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
            open_slots = {
                queue: slots - self._per_queue.get(queue, 0)
                for queue, slots in self.slots.queues.items()
                if slots > self._per_queue.get(queue, 0)
            }
            free = min(free, sum(open_slots.values()))
            return Claim(free, open_slots) if free > 0 else None
        if self.slots.names is not None:
            return Claim(free, dict.fromkeys(self.slots.names, free))
        return Claim(free, None)

    def _claim_due(self, wanted: Claim) -> float:
        if not self._has_backlog(wanted):
            return self._claim_at
        half_free = 2 * wanted.limit >= self.slots.most
        return self._claimed_at + (0.0 if half_free else COOLDOWN)

    def _has_backlog(self, wanted: Claim) -> bool:
        if self.slots.queues is None:
            return self._backlog.get(ANY, False)
        return any(self._backlog.get(queue, False) for queue in wanted.queues or ())

    def claimed(self, now: float, step: Claim, by_queue: Mapping[str, int]) -> None:
        """Note what a claim returned: how many jobs of each queue."""
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
            for queue, asked in (step.queues or {}).items():
                self._backlog[queue] = full or by_queue.get(queue, 0) >= asked
        self._claim_at = now + (HOT_POLL if now < self._hot_until else self.poll)
        if self.burst and not self.running and not self.unsettled:
            self._found_nothing(now)

    def _found_nothing(self, now: float) -> None:
        """Note an empty claim; one that an end overtook did not see what that left."""
        if self._quiet:
            self._empty = True
            self._sweep_at = now
        else:
            self._claim_at = now

    def finished(self, queue: str) -> bool:
        """Note that a slot is free again; return whether the loop should look."""
        self.running -= 1
        self._empty = False
        self._per_queue[queue] = self._per_queue.get(queue, 0) - 1
        if self.stopping or self.burst:
            self._look_if_last()
            return True
        key = ANY if self.slots.queues is None else queue
        return self._backlog.get(key, False)

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
        self._claim_at = now
        self._empty = self._idle = False

    def look(self, now: float, seconds: float = 0.0) -> None:
        """Note that a claim in *seconds* may find what the last one could not."""
        at = max(now + seconds, self._claimed_at + COOLDOWN)
        self._claim_at = min(self._claim_at, at)
        if seconds <= HOT_POLL:
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
