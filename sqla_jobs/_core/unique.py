"""Unique keys: how they are made of a job's values, and who gets one of several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2s
from typing import Any, NamedTuple
from uuid import UUID

from sqla_jobs._core.states import JobState
from sqla_jobs.errors import JobValueError

REPLACED = "replaced by a newer job"
"""The reason of a job that was cancelled for the sake of its unique key."""

KIND_BYTES = 160
"""How much of the kind a computed key shows, in bytes; all of it is in the hash."""


def computed_key(kind: str, parts: Mapping[str, Any]) -> str:
    """
    Return the unique key of a job of *kind* with these *parts*, of any order.

    Raises:
        JobValueError: If a part is of a type that has no canonical text.
    """
    text = json.dumps([kind, parts], sort_keys=True, default=_canonical)
    digest = blake2s(text.encode(), digest_size=16).hexdigest()
    shown = kind.encode()[:KIND_BYTES].decode(errors="ignore")
    return f"{shown}:{digest}"


def _canonical(value: Any) -> list[str]:
    """Return a value that JSON lacks as its type and text; equal ones give the same."""
    for type_, text in _TEXTS.items():
        if isinstance(value, type_):
            return [type_.__name__, text(value)]
    raise JobValueError(
        f"a unique key cannot be made of {value!r}: its type {type(value).__name__} has"
        " no canonical text; name another argument or column in unique=, or give"
        " unique_key="
    )


def _instant(value: datetime) -> str:
    return (value.astimezone(UTC) if value.tzinfo else value).isoformat()


_TEXTS: dict[type[Any], Callable[[Any], str]] = {
    datetime: _instant,  # before date, which it is one of
    date: date.isoformat,
    time: time.isoformat,
    timedelta: lambda value: str(value // timedelta(microseconds=1)),
    Decimal: lambda value: str(value.normalize()),
    UUID: lambda value: value.hex,
    Enum: lambda value: value.name,
    bytes: bytes.hex,
}


@dataclass(slots=True)
class Group:
    """
    The new jobs that want one key, by their numbers.

    Args:
        winner: Who gets the key, if it is free or becomes it.
        others: Those that are not inserted anyway.
        refusing: Who raises if a live job has the key.
        replaces: Whether a waiting job that has the key makes room.
        clash: Who raises in any case, since another new job comes before it.
    """

    key: str
    winner: int
    others: list[int] = field(default_factory=list)
    refusing: int | None = None
    replaces: bool = False
    clash: int | None = None

    def add(self, number: int, policy: str) -> None:
        """Add a later job that wants the same key."""
        if policy == "raise":
            self.clash = number if self.clash is None else self.clash
        elif policy == "replace":
            self.others.append(self.winner)
            self.winner, self.replaces = number, self.refusing is None
            return
        self.others.append(number)


def grouped(wanted: Sequence[tuple[str, str]]) -> list[Group]:
    """Return the groups of new jobs, each wanting (key, policy), in their order."""
    groups: dict[str, Group] = {}
    for number, (key, policy) in enumerate(wanted):
        if key in groups:
            groups[key].add(number, policy)
            continue
        group = groups[key] = Group(key, number, replaces=policy == "replace")
        if policy == "raise":
            group.refusing = number
    return list(groups.values())


class Live(NamedTuple):
    """A live job that has a key; *state* as it is after a replacement was tried."""

    job_id: int
    state: str


class Refusal(NamedTuple):
    """Which new job must raise, and who has the key: None is another new job."""

    number: int
    key: str
    live: Live | None


class Dropped(NamedTuple):
    """A new job that is not inserted: the id, or number, of the one in its place."""

    job_id: int | None
    winner: int


def refusal(groups: Sequence[Group], live: Mapping[str, Live]) -> Refusal | None:
    """Return the first new job that must raise."""
    for group in groups:
        found = live.get(group.key)
        if group.clash is not None and found is None:
            return Refusal(group.clash, group.key, None)
        if found is None:
            continue
        if group.refusing is not None:
            return Refusal(group.refusing, group.key, found)
        if group.clash is not None:
            return Refusal(group.clash, group.key, found)
        if group.replaces and found.state == JobState.RUNNING:
            return Refusal(group.winner, group.key, found)
    return None


def dropped(groups: Sequence[Group], live: Mapping[str, Live]) -> dict[int, Dropped]:
    """Return the new jobs that are not inserted, where nobody raises."""
    found: dict[int, Dropped] = {}
    for group in groups:
        stays = None if group.replaces else live.get(group.key)
        numbers = [*group.others, group.winner] if stays else group.others
        made = Dropped(stays.job_id if stays else None, group.winner)
        found |= dict.fromkeys(numbers, made)
    return found


def duplicate_text(what: str, refused: Refusal) -> str:
    """Return the error for the new job *what*."""
    if refused.live is None:
        held = "another new job before it has"
    else:
        held = f"job {refused.live.job_id} ({refused.live.state}) has"
    return (
        f"{what}: {held} the unique key {refused.key!r};"
        " on_conflict='skip', 'replace' or 'return' would not raise"
        + ("" if not _is_running(refused.live) else ", 'replace' only while it waits")
    )


def _is_running(live: Live | None) -> bool:
    return live is not None and live.state == JobState.RUNNING
