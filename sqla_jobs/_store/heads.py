"""Claim the heads of ordered channels: one job at a time, in send order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest
from time import monotonic
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs._core.limits import Features
from sqla_jobs._core.memory import LOOKS, SOON, Channel, Memory
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
    return _claim(_Round(session, tables, ask, chains, {*_pairs(ask), *freed}))


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
    return _claim(_Round(session, tables, ask, chains, {*pairs, *freed}, queues))


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

    session: Session
    tables: JobTables
    ask: Ask
    chains: Sequence[str]
    named: set[Channel]
    rooms: Mapping[str, FairAsk] | None = None

    @property
    def memory(self) -> Memory:
        """What the claimer remembers."""
        return memory_of(self.tables, self.ask)

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
        self.ids: dict[int, None] = {}  # a set in order

    def admit(self, row: Any) -> bool:
        """Return whether the head may be taken, and count it if so."""
        of = subscription_of(self.asked or (), row.queue, row.channel)
        suspect = row.crashes >= SUSPECT_CRASHES
        if self.limit <= 0 or self.slots[of] <= 0 or suspect > self.suspects:
            return False
        if row.id in self.ids:  # of an earlier look
            return False
        if self.rooms is not None and not self._has_room(row):
            return False
        self.limit -= 1
        self.slots[of] -= 1
        self.queues[row.queue] -= 1
        self.suspects -= suspect
        self.ids[row.id] = None
        return True

    def _has_room(self, row: Any) -> bool:
        room = (self.rooms or {}).get(row.queue)
        if room is None or self.queues[row.queue] <= 0:
            return False
        return room.room(row.channel) > 0


def _choose(room: _Room, rows: Sequence[Any], *, at_random: bool) -> None:
    """Admit what to take: of those named and the others in turn, or at random."""
    ready = [row for row in rows if row.ready]
    named = [row for row in ready if row.chain is None]
    others = [row for row in ready if row.chain is not None]
    mixed = chain.from_iterable(zip_longest(named, others))
    ready = list({row.id: row for row in mixed if row is not None}.values())
    if at_random:
        random.shuffle(ready)
    for row in ready:
        room.admit(row)


def _claim(this: _Round) -> list[Any]:
    """Lease heads, from where the last claim stopped, once round the channels."""
    memory, room = this.memory, _Room(this)
    starts = {name: memory.after.get(name, START) for name in this.chains}
    ended = _look(this, room, starts, list(this.named))
    # A runner comes again soon; a low-level claim is one call, not one of many.
    if not room.ids or (this.ask.memory is None and room.limit > 0):
        rest = {name: START for name in ended if starts[name] != START}
        _look(this, room, rest, [])
    ids = list(room.ids)
    if not ids:
        return []
    jobs = lease_heads(this.session, this.tables, this.ask, ids, plain=this.plain)
    memory.crowded = len(jobs or ()) < len(ids)
    if jobs is None:
        memory.again_in(SOON)
    return jobs or []


def _look(
    this: _Round,
    room: _Room,
    starts: Mapping[str, Channel],
    named: Sequence[Channel],
) -> list[str]:
    """Admit heads to take; return the chains that were gone through to the end."""
    memory, began, before = this.memory, monotonic(), len(room.ids)
    # A low-level claim always looks.
    if starts and this.ask.memory is not None and not memory.may_look(began):
        starts = {}
    if not starts and not named:
        return []
    look = Look(starts, named, max(1, LOOKS // max(1, len(starts))), this.plain)
    rows = look_at_heads(this.session, this.tables, this.ask, look)
    _choose(room, rows, at_random=memory.crowded)
    if not starts:
        return []
    vain, ended = _note(this, look, rows, room.ids)
    whole = all(start == START for start in starts.values())
    memory.looked(
        monotonic(),
        monotonic() - began,
        vain=vain,
        found=len(room.ids) - before,
        # With nothing found, what is before the starts is looked at next.
        complete=len(ended) == len(starts) and (whole or not room.ids),
    )
    return ended


def _note(
    this: _Round, look: Look, rows: Sequence[Any], ids: Collection[int]
) -> tuple[int, list[str]]:
    """Note where the next looks begin; return those in vain, and the ended chains."""
    vain, ended = 0, []
    for name in look.after:
        own = [row for row in rows if row.chain == name]
        vain += own[-1].n - own[-1].found if own else 0
        if _is_ended(own, look.vain, enough(this.ask)):
            ended.append(name)
        left = next((row for row in own if row.ready and row.id not in ids), None)
        stop = left or (None if name in ended else own[-1])
        this.memory.after[name] = (stop.queue, stop.channel) if stop else START
    return vain, ended


def _is_ended(rows: Sequence[Any], vain: int, enough: int) -> bool:
    """Return whether a chain had no more heads."""
    if not rows:
        return True
    last = rows[-1]
    return bool(last.n - last.found < vain and last.found < enough)
