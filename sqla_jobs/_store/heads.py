"""Claim the heads of ordered channels: one job at a time, in send order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs._core.limits import Features
from sqla_jobs._core.memory import SOON, Channel, Memory
from sqla_jobs._core.states import SUSPECT_CRASHES
from sqla_jobs._core.subscriptions import Subscription, subscription_of
from sqla_jobs._store.fair import FairAsk
from sqla_jobs._store.head_rows import ALL, Look, enough, lease_heads, look_at_heads
from sqla_jobs._store.take import Ask
from sqla_jobs.models import JobTables

START: Channel = ("", "")


def claim_heads(
    session: Session, tables: JobTables, ask: Ask, features: Features
) -> list[Any]:
    """Lease heads of ordered channels in queues without limits; does not commit."""
    managed = {one.name for one in features.managed}
    freed = memory_of(tables, ask).take_freed(lambda queue: queue not in managed)
    asked = ask.queues
    if asked is None or ask.shape.prefixes:
        chains = [ALL]
    else:
        chains = [one for one in asked if isinstance(one, str)]
    return _claim(session, tables, _Round(ask, chains, {*_pairs(ask), *freed}))


def claim_heads_of(
    session: Session, tables: JobTables, ask: Ask, queues: Mapping[str, FairAsk]
) -> list[Any]:
    """Lease heads of ordered channels of *queues*, managed or not; does not commit."""
    freed = memory_of(tables, ask).take_freed(lambda queue: queue in queues)
    pairs = {pair for pair in _pairs(ask) if pair[0] in queues}
    chains = [
        name
        for name in queues
        if any(share.channel is None for share in ask.shares(name))
    ]
    return _claim(session, tables, _Round(ask, chains, {*pairs, *freed}, queues))


def memory_of(tables: JobTables, ask: Ask) -> Memory:
    """Return the claimer's memory, or the one that low-level claims share."""
    return _shared_memory(tables) if ask.memory is None else ask.memory


@lru_cache(maxsize=256)
def _shared_memory(tables: JobTables) -> Memory:
    return Memory()


def _pairs(ask: Ask) -> list[Channel]:
    return [one for one in ask.queues or () if isinstance(one, tuple)]


@dataclass(frozen=True, slots=True)
class _Round:
    """
    What one claim of heads goes through.

    Args:
        chains: Queues whose channels to go through, or `ALL` of them.
        named: Channels to look at in any case.
        rooms: What the limits of each queue leave; None for queues without.
    """

    ask: Ask
    chains: Sequence[str]
    named: set[Channel]
    rooms: Mapping[str, FairAsk] | None = None

    @property
    def plain(self) -> bool:
        """Whether fair and limited queues are left out."""
        return self.rooms is None


class _Room:
    """What may still be taken: of each subscription, each queue, and in all."""

    def __init__(self, this: _Round) -> None:
        ask, self.rooms = this.ask, this.rooms
        self.limit, self.suspects = ask.limit, int(ask.suspects)
        self.asked = ask.queues
        slots = {None: ask.limit} if ask.queues is None else dict(ask.queues)
        self.slots: Counter[Subscription | None] = Counter(slots)
        rooms = this.rooms or {}
        self.queues = Counter({name: room.slots for name, room in rooms.items()})

    def admit(self, row: Any) -> bool:
        """Return whether the head may be taken, and count it if so."""
        of = subscription_of(self.asked or (), row.queue, row.channel)
        suspect = row.crashes >= SUSPECT_CRASHES
        if self.limit <= 0 or self.slots[of] <= 0 or suspect > self.suspects:
            return False
        if self.rooms is not None and not self._has_room(row):
            return False
        self.limit -= 1
        self.slots[of] -= 1
        self.queues[row.queue] -= 1
        self.suspects -= suspect
        return True

    def _has_room(self, row: Any) -> bool:
        room = (self.rooms or {}).get(row.queue)
        if room is None or self.queues[row.queue] <= 0:
            return False
        return room.room(row.channel) > 0


def _chosen(this: _Round, ready: Sequence[Any]) -> list[int]:
    """Return the ids to take, at random: others may be looking at the same ones."""
    rows = list({row.id: row for row in ready}.values())
    random.shuffle(rows)
    room = _Room(this)
    return [row.id for row in rows if room.admit(row)]


def _claim(session: Session, tables: JobTables, this: _Round) -> list[Any]:
    memory = memory_of(tables, this.ask)
    looks = memory.looks(monotonic())
    chains = this.chains if looks else []
    if this.chains and not looks:
        memory.again_in(SOON)
    vain = max(1, looks // max(1, len(chains)))
    after = {name: memory.after.get(name, START) for name in chains}
    ids = _ids(session, tables, this, Look(after, [*this.named], vain, this.plain))
    if not ids and any(start != START for start in after.values()):
        again = Look(dict.fromkeys(chains, START), [], vain, this.plain)
        ids = _ids(session, tables, this, again)
    if not ids:
        return []
    jobs = lease_heads(session, tables, this.ask, ids, plain=this.plain)
    if jobs is None:
        memory.again_in(SOON)
    return jobs or []


def _ids(session: Session, tables: JobTables, this: _Round, look: Look) -> list[int]:
    """Return ids of heads to take, and note how far the look went."""
    if not look.after and not look.named:
        return []
    rows = look_at_heads(session, tables, this.ask, look)
    chosen = _chosen(this, [row for row in rows if row.ready])
    memory, vain, complete = memory_of(tables, this.ask), 0, True
    for name, start in look.after.items():
        own = [row for row in rows if row.chain == name]
        left = next((row for row in own if row.ready and row.id not in chosen), None)
        last = own[-1] if own else None
        ended = last is None or (
            last.n - last.found < look.vain and last.found < enough(this.ask)
        )
        stop = left or (None if ended else last)
        memory.after[name] = (stop.queue, stop.channel) if stop else START
        vain += last.n - last.found if last else 0
        complete &= ended and start == START
    memory.looked(vain, found=len(chosen), complete=complete)
    return chosen
