"""Which jobs a claim may return: the promises about order, turns and limits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from tests.model.oracle import SUSPECT, Oracle, Queue, Row


@dataclass(frozen=True)
class Ask:
    """What was asked for; ``queues`` also tells whether it was by names."""

    limit: int
    kinds: Collection[str]
    takes: Callable[[str, str], bool] = lambda queue, channel: True
    by_names: bool = True


class Turns:
    """What could be claimed before a claim, to judge what was."""

    def __init__(self, oracle: Oracle, ask: Ask) -> None:
        self.oracle, self.ask = oracle, ask
        rows = oracle.rows.values()
        running = [row for row in rows if row.state == "running"]
        self.running = Counter(row.queue for row in running)
        self.per_channel = Counter((row.queue, row.channel) for row in running)
        self.plain = [row for row in rows if not row.ordered and self._wanted(row)]
        self.heads = [row for row in self._heads() if self._wanted(row)]

    def judge(self, claimed: Collection[int]) -> None:
        """Fail if these ids may not be what a claim returns."""
        assert len(set(claimed)) == len(claimed) <= self.ask.limit
        self._only_what_may_run(claimed)
        self._no_more_than_the_limits(claimed)
        self._as_many_as_there_are(claimed)
        self._in_order(claimed)
        self._in_turn(claimed)

    def _wanted(self, row: Row) -> bool:
        if row.state != "available" or row.kind not in self.ask.kinds:
            return False
        paused = self.oracle.queue(row.queue).paused
        return not paused and self.ask.takes(row.queue, row.channel)

    def _heads(self) -> Iterable[Row]:
        channels: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.oracle.rows.values():
            if row.ordered:
                channels[row.queue, row.channel].append(row)
        for (queue, _), rows in channels.items():
            live = [row for row in rows if row.live]
            if not live or any(row.state == "running" for row in live):
                continue
            head = min(live, key=lambda row: row.id)
            dead = any(r.state == "discarded" and r.id < head.id for r in rows)
            if not dead or self.oracle.queue(queue).on_discard == "skip":
                yield head

    def _only_what_may_run(self, claimed: Collection[int]) -> None:
        may = {row.id for row in [*self.plain, *self.heads]}
        assert set(claimed) <= may, f"claimed {set(claimed) - may}, may be {may}"
        suspects = [one for one in claimed if self.oracle.rows[one].crashes >= SUSPECT]
        assert len(suspects) <= 1, f"claimed the suspects {suspects} together"

    def _no_more_than_the_limits(self, claimed: Collection[int]) -> None:
        rows = [self.oracle.rows[one] for one in claimed]
        queues = self.running + Counter(row.queue for row in rows)
        channels = self.per_channel + Counter((row.queue, row.channel) for row in rows)
        taken = {row.queue for row in rows}
        for name in taken:
            most = self.oracle.queue(name).max_running
            assert most is None or queues[name] <= most, f"{name}: {queues[name]} run"
        for (name, channel), count in channels.items():
            most = self.oracle.queue(name).max_running_per_channel
            held = name in taken and any(row.channel == channel for row in rows)
            assert most is None or not held or count <= most, f"{channel}: {count} run"

    def _as_many_as_there_are(self, claimed: Collection[int]) -> None:
        """Where nothing limits, all are claimed that the limit lets; else some."""
        rows = [*self.plain, *self.heads]
        free = [row for row in rows if not self._settings(row).managed]
        sure = [row for row in free if row.crashes < SUSPECT]
        least = min(self.ask.limit, len(sure) + (len(free) > len(sure)))
        assert len(claimed) >= least, f"claimed {claimed} of {[r.id for r in free]}"
        open_ = any(self._room(row) for row in rows)
        assert claimed or not open_, f"claimed none of {[r.id for r in rows]}"

    def _settings(self, row: Row) -> Queue:
        return self.oracle.queue(row.queue)

    def _room(self, row: Row) -> bool:
        queue = self._settings(row)
        most, each = queue.max_running, queue.max_running_per_channel
        here = self.per_channel[row.queue, row.channel]
        return (most is None or self.running[row.queue] < most) and (
            each is None or here < each
        )

    def _in_order(self, claimed: Collection[int]) -> None:
        """In a queue, or in a channel of it where these take turns, first in first."""
        lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in sorted(self.plain, key=lambda row: row.place):
            queue = self._settings(row)
            in_turn = queue.fair or queue.max_running_per_channel is not None
            in_turn = in_turn or not self.ask.by_names
            if row.crashes < SUSPECT:
                lines[row.queue, row.channel if in_turn else ""].append(row)
        for line in lines.values():
            marks = [row.id in claimed for row in line]
            assert marks == sorted(marks, reverse=True), (
                f"claimed {claimed} of the line {[row.id for row in line]}"
            )

    def _in_turn(self, claimed: Collection[int]) -> None:
        """A queue with jobs left got no fewer than another, but for one."""
        if not self.ask.by_names:
            return
        free = [row for row in self.plain if not self._settings(row).managed]
        got = Counter(row.queue for row in free if row.id in claimed)
        left = {r.queue for r in free if r.id not in claimed and r.crashes < SUSPECT}
        most = max(got.values(), default=0)
        assert all(got[queue] >= most - 1 for queue in left), f"got {got}, left {left}"
