"""What a claimer remembers from one claim to the next; pure, times are monotonic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LOOKS = 500
"""Most heads that one claim looks at in vain."""

PATIENCE = 8
"""So many times as long as looks in vain took, no others are taken."""

HOPELESS = 20_000
"""So many looks in vain, one after the other, end the haste."""

SOON = 0.02
"""Seconds after which a claim that could not see everything is repeated."""

REST = 0.05
"""Seconds for which a queue without free slots is not looked at, in others' favour."""

FROM_THE_HEAD = 1.0
"""Seconds after which a claim looks at the head of the claim index again."""

FROM_THE_HEAD_WOKEN = 0.1
"""The same once there was a notification: something more urgent may have come."""

Channel = tuple[str, str]


class Mark(NamedTuple):
    """A place in the claim order of a queue."""

    priority: int
    lane: int
    run_at: Any
    id: int


@dataclass(slots=True)
class Memory:
    """
    One runner's memory, or that of all low-level claims of a process.

    Args:
        after: Per round of looks, the channel at which the next look begins.
        freed: Channels whose ordered job was settled here: their next one may run.
        crowded: Whether others took heads that the last claim had looked at.
        unfinished: Whether there may be jobs that are ready, but were not looked at.
        passed_over: Whether plain jobs filled the last low-level claim, and others
            were not looked at.
        marks: Per queue, the last job of a claim that got all it asked for.
    """

    after: dict[str, Channel] = field(default_factory=dict)
    freed: set[Channel] = field(default_factory=set)
    crowded: bool = False
    unfinished: bool = False
    passed_over: bool = False
    marks: dict[str, Mark] = field(default_factory=dict)
    _from_head_at: float = float("-inf")
    _woken: bool = False
    _look_at: float = float("-inf")
    _vain: int = 0
    _rests: dict[str, float] = field(default_factory=dict)
    _again: float | None = None
    _settled: int = 0
    _began: int = 0

    def begin(self) -> None:
        """Note that a claim begins: it does not see what is settled from now on."""
        self._began = self._settled
        self.unfinished = False

    @property
    def is_late(self) -> bool:
        """Whether something was settled since the claim began."""
        return self._settled != self._began

    # Plain jobs

    def may_go_on(self, now: float) -> bool:
        """Return whether a claim may begin where the last one ended."""
        rest = FROM_THE_HEAD_WOKEN if self._woken else FROM_THE_HEAD
        return bool(self.marks) and now < self._from_head_at + rest

    def looks_from_head(self, now: float) -> None:
        """Note that a claim begins at the head."""
        self._from_head_at, self._woken = now, False
        self.marks.clear()

    def took(self, jobs: Iterable[Any], *, all_asked_for: bool) -> None:
        """Note what a claim took, in claim order."""
        if not all_asked_for:
            self.marks.clear()
            return
        for queue, job in {job.queue: job for job in jobs}.items():  # its last one
            self.marks[queue] = Mark(job.priority, job.lane, job.run_at, job.id)

    # Heads of ordered channels

    def may_look(self, now: float) -> bool:
        """Return whether it is time for looks that may be in vain."""
        if now >= self._look_at:
            return True
        self.again_in(max(SOON, self._look_at - now))
        return False

    def looked(
        self, now: float, seconds: float, *, vain: int, found: int, complete: bool
    ) -> None:
        """
        Note looks that have taken *seconds*.

        Args:
            complete: Whether there was nothing else to look at.
        """
        in_vain = seconds * vain / max(1, vain + found)
        self._look_at = now + PATIENCE * in_vain
        self._vain = 0 if found else self._vain + vain
        if not complete and self._vain < HOPELESS:
            self.again_in(max(SOON, PATIENCE * in_vain))

    def take_freed(self, wanted: Callable[[str], bool]) -> list[Channel]:
        """Return, once, the freed channels of the queues that are *wanted*."""
        found = [one for one in list(self.freed) if wanted(one[0])]
        self.freed.difference_update(found)
        return found

    # Queues with limits

    def awake(self, queues: Iterable[str], now: float) -> list[str]:
        """Return those of *queues* that do not rest at *now*."""
        return [queue for queue in queues if self._rests.get(queue, now) <= now]

    def rest(self, queue: str, now: float, seconds: float = REST) -> None:
        """Leave *queue* alone for *seconds*, unless a slot may be free since."""
        if not self.is_late:
            self._rests[queue] = now + seconds

    # Both

    def settled(self, queue: str, channel: str, *, ordered: bool) -> None:
        """Note that a job was settled here: what it held back may run."""
        if ordered:
            self.freed.add((queue, channel))
        self._settled += 1
        self._rests.pop(queue, None)

    def woke(self) -> None:
        """Note a notification: there may be new jobs anywhere."""
        self._vain, self._woken = 0, True

    def again_in(self, seconds: float, *, unfinished: bool = True) -> None:
        """
        Note that a claim in *seconds* may find what this one could not.

        Args:
            unfinished: Whether it may be ready already. Default True.
        """
        self.unfinished = unfinished or (self._again is not None and self.unfinished)
        if self._again is None or seconds < self._again:
            self._again = seconds

    def take_again(self) -> float | None:
        """Return in how many seconds to claim again; None if that is not needed."""
        if self.is_late:
            self.again_in(0.0)
        again, self._again = self._again, None
        return again
