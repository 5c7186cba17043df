"""
Claim plain jobs: in a backlog, a claim goes on where the last one ended.

While a snapshot is held somewhere, the index entries of all jobs done since then stay
in front of those that are left, and each claim from the head reads them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs._core.limits import Features
from sqla_jobs._core.memory import Mark
from sqla_jobs._store.pick import pick, pick_after
from sqla_jobs._store.take import Ask, claim_order, entity_order, take
from sqla_jobs.models import JobTables


def claim_plain(
    session: Session, tables: JobTables, ask: Ask, features: Features
) -> list[Any]:
    """
    Lease plain jobs, in claim order; does not commit.

    From the head of the index, unless the last claim of this memory got all it asked
    for: then from its last job on. What may have come before that job meanwhile is
    looked for after a second, after a tenth of one if there was a notification, and
    whenever slots are left: by the next claim, so that each is one statement, which
    may commit by itself.
    """
    memory, order = ask.memory, entity_order if ask.entities else claim_order
    if memory is None:
        return take(session, tables, ask, pick, *ask.variant)
    now = monotonic()
    marks = _marks(ask, memory.marks) if memory.may_go_on(now) else {}
    if marks:
        params = _params(ask, marks)
        found = take(session, tables, ask, pick_after, ask.kinds is None, **params)
        if found:
            found.sort(key=order)
            full = not ask.after(found).open
            memory.took(found, all_asked_for=full)
            if not full:
                memory.again_in(0.0)
            return found
    memory.looks_from_head(now)
    found = take(session, tables, ask, pick, *ask.variant)
    found.sort(key=order)
    memory.took(found, all_asked_for=not ask.after(found).open)
    return found


def _marks(ask: Ask, known: Mapping[str, Mark]) -> dict[str, Mark]:
    """Return where to begin in each queue; nothing where one's place is unknown."""
    if ask.late or ask.shape.pairs or ask.shape.prefixes:
        return {}
    if ask.queues is None:
        return dict(known)
    names = [str(name) for name, slots in ask.queues.items() if slots > 0]
    return {name: known[name] for name in names} if known.keys() >= set(names) else {}


def _params(ask: Ask, marks: Mapping[str, Mark]) -> dict[str, Any]:
    slots = ask.queues or dict.fromkeys(marks, ask.limit)
    params: dict[str, Any] = {
        "queue": list(marks),
        "slots": [min(slots[name], ask.limit) for name in marks],
    }
    for place, name in enumerate(Mark._fields):
        params[f"after_{name}"] = [mark[place] for mark in marks.values()]
    return params
