"""The values of options: read from text, checked by the rules of the runner itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from sqla_jobs._core.plan import Slots
from sqla_jobs._core.subscriptions import (
    Subscription,
    read_label,
    split_labels,
    split_slots,
)
from sqla_jobs.errors import JobValueError

if TYPE_CHECKING:
    from sqlalchemy import URL


def parse_concurrency(text: str) -> int | tuple[int, int]:
    """
    Return the number, or the pair, that *text* means.

    Raises:
        JobValueError: If it is neither, or a runner would refuse it.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    match numbers:
        case [number]:
            Slots.of(number, None)
            return number
        case [least, most]:
            Slots.of((least, most), None)
            return least, most
        case _:
            raise JobValueError(f"{text!r} is neither a whole number nor MIN,MAX")


def parse_seconds(text: str) -> timedelta:
    """
    Return the duration of so many seconds.

    Raises:
        JobValueError: If it is no number, or one below zero or beyond all bounds.
    """
    try:
        seconds = float(text)
    except ValueError:
        raise JobValueError(f"{text!r} is not a number of seconds") from None
    if not math.isfinite(seconds) or not 0 <= seconds <= 10**9:
        raise JobValueError(f"must be zero or more seconds, got {text}")
    return timedelta(seconds=seconds)


def parse_poll(text: str) -> timedelta:
    """
    Return the duration of so many seconds, above zero.

    Raises:
        JobValueError: If it is no such number.
    """
    poll = parse_seconds(text)
    if not poll:
        raise JobValueError(f"must be above zero, got {text}")
    return poll


def parse_lease(text: str) -> timedelta:
    """
    Return the duration of so many seconds, 3 or more.

    Raises:
        JobValueError: If it is no such number.
    """
    from sqla_jobs._store.claim import check_lease

    lease = parse_seconds(text)
    check_lease(lease)
    return lease


def parse_share(text: str) -> float:
    """
    Return a number from 0 to 1.

    Raises:
        JobValueError: If it is none.
    """
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise JobValueError(f"must be a number from 0 to 1, got {text!r}")
    return share


def parse_url(text: str) -> URL:
    """
    Return the URL of a database.

    Raises:
        JobValueError: If it is none; does not say its password.
    """
    from sqla_jobs._notify import checked_url

    url = checked_url(text)
    assert url is not None
    return url


def parse_count(text: str) -> int:
    """
    Return a whole number of 1 or more.

    Raises:
        JobValueError: If it is none.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise JobValueError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def parse_names(values: Sequence[str]) -> list[str]:
    """
    Return the names in a repeated, comma separated option.

    Raises:
        JobValueError: If one is empty or there twice.
    """
    return _checked([n.strip() for value in values for n in value.split(",")], values)


def _checked(names: list[str], values: Sequence[str]) -> list[str]:
    if "" in names:
        raise JobValueError(f"a name is missing in {','.join(values)!r}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise JobValueError(f"{twice[0]!r} is named twice")
    return names


def parse_queues(
    values: Sequence[str] | Mapping[str, int],
) -> dict[Subscription, int] | list[Subscription]:
    """
    Return the slots by queue, or the names where no slots are given.

    A channel is ``["QUEUE", "CHANNEL"]``, a prefix ``{"prefix": "TEXT"}``, and a name
    with commas or colons ``"NAME"``.

    Raises:
        JobValueError: If only some have slots, or a runner would refuse them.
    """
    if isinstance(values, Mapping):
        given = {read_label(name): slots for name, slots in values.items()}
        Slots.of(None, given)
        return given
    items = [part for value in values for part in split_labels(value)]
    pairs = [split_slots(item) for item in _checked(items, values)]
    names = _checked([name for name, _ in pairs], values)
    slots = {name: text for name, text in pairs if text is not None}
    if not slots:
        return [read_label(name) for name in names]
    if len(slots) != len(names):
        raise JobValueError(f"give slots to all queues or to none, got {items}")
    queues = {read_label(name): _slots(name, text) for name, text in slots.items()}
    Slots.of(None, queues)
    return queues


def _slots(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise JobValueError(
            f"the slots of queue {name!r} must be a whole number, got {text!r}"
        ) from None
