"""Claim from queues that are fair or limited, which plain claims leave alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs._core.limits import Features, QueueSettings, admitted
from sqla_jobs._core.memory import REST, SOON, Memory
from sqla_jobs._core.subscriptions import Subscription
from sqla_jobs._store.fair import FairAsk, claim_fair
from sqla_jobs._store.heads import claim_heads_of
from sqla_jobs._store.limits import OpenQueue, charge, count_running, open_queues
from sqla_jobs._store.pick import pick
from sqla_jobs._store.take import Ask, take
from sqla_jobs.models import JobTables

LONGEST_REST = 1.0
"""Seconds; a limit may be raised before the next token comes."""


def claim_managed(
    session: Session, tables: JobTables, ask: Ask, features: Features
) -> list[Any]:
    """
    Lease jobs of fair and limited queues; does not commit.

    A limited queue whose row another transaction has is left out this time.
    """
    memory = ask.memory or Memory()
    names = [one.name for one in features.managed if ask.shares(one.name)]
    names = memory.awake(names, monotonic())
    if not names:
        return []
    rooms = _rooms(session, tables, ask, memory, names)
    claim = _Claim(session, tables, ask, memory, rooms)
    parts: list[_Part] = [claim.fair, claim.plain, *claim.shared()]
    if features.ordered:
        parts.append(claim.heads)
    # None may always come first: it could take every slot, every time.
    random.shuffle(parts)
    for part in parts:
        claim.take(part)
    claim.settle()
    return claim.jobs


@dataclass(slots=True)
class _Room:
    """What may be taken from an open queue, and what has been."""

    queue: OpenQueue
    settings: QueueSettings
    slots: int
    running: Counter[str]
    taken: int = 0

    @property
    def ask(self) -> FairAsk:
        """What the limits leave."""
        most = self.settings.max_running_per_channel
        return FairAsk(self.slots - self.taken, most, self.running)

    @property
    def by_channel(self) -> bool:
        """Whether channels have to be told apart."""
        return self.settings.fair or self.settings.max_running_per_channel is not None


def _rooms(
    session: Session, tables: JobTables, ask: Ask, memory: Memory, names: list[str]
) -> dict[str, _Room]:
    """Lock and count; return what each queue has room for."""
    rooms: dict[str, _Room] = {}
    for queue in open_queues(session, tables, names, now=ask.now):
        settings = queue.settings
        if settings is None:
            memory.again_in(SOON)
        elif settings.managed and not settings.paused:
            rooms[queue.name] = _Room(queue, settings, ask.limit, Counter())
    counted = [name for name, room in rooms.items() if _counts(room.settings)]
    if counted:
        running = count_running(session, tables, counted)
        for name in counted:
            rooms[name].running = running[name]
    for room in rooms.values():
        room.slots = admitted(
            room.settings,
            asked=ask.limit,
            running=room.running.total(),
            bucket=room.queue.bucket,
        )
    return rooms


def _counts(settings: QueueSettings) -> bool:
    return not (
        settings.max_running is None and settings.max_running_per_channel is None
    )


_Rooms = dict[str, FairAsk]
_Part = Callable[[_Rooms], list[Any]]


@dataclass(slots=True)
class _Claim:
    session: Session
    tables: JobTables
    ask: Ask
    memory: Memory
    rooms: Mapping[str, _Room]
    jobs: list[Any] = field(default_factory=list)

    def take(self, part: _Part) -> None:
        """Lease what one part finds, and count it."""
        left = {name: room.ask for name, room in self.rooms.items()}
        left = {name: one for name, one in left.items() if one.slots > 0}
        if not left or not self.ask.open:
            return
        jobs = part(left)
        for job in jobs:
            room = self.rooms[job.queue]
            room.taken += 1
            room.running[job.channel] += 1
        self.ask = self.ask.after(jobs)
        self.jobs += jobs

    def heads(self, left: _Rooms) -> list[Any]:
        """Lease heads of ordered channels."""
        return claim_heads_of(self.session, self.tables, self.ask, left)

    def fair(self, left: _Rooms) -> list[Any]:
        """Lease other jobs where channels have to be told apart."""
        queues = {n: one for n, one in left.items() if self.rooms[n].by_channel}
        if not queues:
            return []
        jobs = claim_fair(self.session, self.tables, self.ask, queues)
        if 0 < len(jobs) < self.ask.limit:
            self.memory.again_in(0.0)  # it may have been some of the channels
        return jobs

    def plain(self, left: _Rooms) -> list[Any]:
        """Lease other jobs where they have not, and one subscription has them all."""
        names = [name for name in left if len(self.ask.shares(name)) == 1]
        return self._pick({name: left[name] for name in names})

    def shared(self) -> list[_Part]:
        """Return a part for each queue that several subscriptions have shares of."""
        names = [name for name in self.rooms if len(self.ask.shares(name)) > 1]
        return [partial(self._one, name) for name in names]

    def _one(self, name: str, left: _Rooms) -> list[Any]:
        return self._pick({name: left[name]} if name in left else {})

    def _pick(self, left: _Rooms) -> list[Any]:
        queues = {n: one for n, one in left.items() if not self.rooms[n].by_channel}
        most = sum(one.slots for one in queues.values())
        ask = replace(
            self.ask,
            queues=_narrowed(self.ask, queues),
            limit=min(self.ask.limit, most),
        )
        if not ask.open:
            return []
        variant = ask.shape._replace(managed=True), ask.kinds is None, ask.late > 0
        return take(self.session, self.tables, ask, pick, *variant)

    def settle(self) -> None:
        """Charge the limited queues; let those rest that gave nothing."""
        limited = [room for room in self.rooms.values() if room.settings.limited]
        taken = [(room.queue, room.taken) for room in limited if room.taken]
        if taken:
            charge(self.session, self.tables, taken)
        for room in limited:
            bucket = room.queue.bucket
            if not room.taken and bucket is not None and not bucket.whole:
                rest = min(bucket.next_in, LONGEST_REST)
                self.memory.rest(room.queue.name, monotonic(), rest)
                self.memory.again_in(max(SOON, rest), unfinished=False)
            elif not room.taken and not (room.slots and self.memory.unfinished):
                self.memory.rest(room.queue.name, monotonic(), REST)


def _narrowed(ask: Ask, queues: _Rooms) -> dict[Subscription, int]:
    """
    Return what the subscriptions may take where *queues* have but so many slots.

    The slots of a prefix are dealt out to its queues. Of several subscriptions to one
    queue, which is then the only one, each may have all slots that it has.
    """
    found: dict[Subscription, int] = {}
    used = Counter[Subscription | None]()
    for name, room in queues.items():
        for share in ask.shares(name):
            slots = max(0, min(room.slots, share.slots - used[share.subscription]))
            used[share.subscription] += slots
            found[name if share.channel is None else (name, share.channel)] = slots
    return found
