"""What runners and claims take from: queues, channels of queues, prefixes; pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqla_jobs._core.options import problem_of
from sqla_jobs.errors import JobValueError


@dataclass(frozen=True, slots=True)
class Prefix:
    """
    In ``queues=``: all queues whose name begins with *text*, letter for letter.

    ``Prefix("")`` means all queues that nothing else there names.

    Raises:
        JobValueError: If *text* is no text that the database could hold.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise JobValueError(f"Prefix takes a text, got {self.text!r}")
        if problem := problem_of("channel", self.text):
            raise JobValueError(f"Prefix({self.text!r}): it {problem}")


Subscription = str | tuple[str, str] | Prefix
"""A queue with all its channels; a (queue, channel) pair; or a prefix of names."""


@dataclass(frozen=True, slots=True)
class Share:
    """
    What one subscription may take from one queue.

    Args:
        subscription: Which one; None where everything is asked for.
        slots: Most jobs, 1 or more.
        channel: The only channel; None means all but *without*.
        without: Channels that are subscribed to on their own.
    """

    subscription: Subscription | None
    slots: int
    channel: str | None = None
    without: tuple[str, ...] = ()


def check_subscriptions(queues: Iterable[Any]) -> list[Subscription]:
    """
    Return *queues* as a list.

    Raises:
        JobValueError: If one is no name, (queue, channel) pair or `Prefix`, or the
            database could not hold it.
    """
    found = list(queues)
    for one in found:
        parts = one if isinstance(one, tuple) else (one,)
        pair = isinstance(one, tuple) and len(one) == 2
        if not isinstance(one, str | Prefix) and not (
            pair and all(isinstance(part, str) for part in one)
        ):
            raise JobValueError(
                f"queues: {one!r} is no name of a queue, no (queue, channel) pair"
                ' and no Prefix("...")'
            )
        for part in parts:
            problem = isinstance(part, str) and problem_of("channel", part)
            if problem:
                raise JobValueError(f"queues: {part!r} {problem}")
    return found


def names_only(queues: Iterable[Subscription]) -> bool:
    """Return whether *queues* are plain names, which cannot overlap."""
    return all(isinstance(one, str) for one in queues)


def subscription_of(
    queues: Iterable[Subscription], queue: str, channel: str
) -> Subscription | None:
    """Return the most specific one that matches: pair, then name, longest prefix."""
    known = queues if isinstance(queues, Mapping) else list(queues)
    if (queue, channel) in known:
        return (queue, channel)
    return _for_the_rest(known, queue)


def _for_the_rest(queues: Iterable[Subscription], queue: str) -> Subscription | None:
    if queue in queues:
        return queue
    fitting = [
        one for one in queues if isinstance(one, Prefix) and queue.startswith(one.text)
    ]
    return max(fitting, key=lambda one: len(one.text), default=None)


def shares_of(
    queues: Mapping[Subscription, int] | None, queue: str, *, limit: int
) -> list[Share]:
    """
    Return what may be taken from *queue*, at most *limit* each; disjoint.

    A prefix gives its slots to each queue that it matches; they share them, which is
    the caller's business.
    """
    if queues is None:
        return [Share(None, limit)] if limit > 0 else []
    pairs = [one for one in queues if isinstance(one, tuple) and one[0] == queue]
    shares = [Share(one, min(limit, queues[one]), channel=one[1]) for one in pairs]
    rest = _for_the_rest(queues, queue)
    if rest is not None:
        without = tuple(channel for _, channel in pairs)
        shares.append(Share(rest, min(limit, queues[rest]), without=without))
    return [share for share in shares if share.slots > 0]


def label(subscription: Subscription) -> str:
    """
    Return a text for logs and the runner's row that `read_label` understands.

    A name is itself; one that begins like JSON, a pair and a prefix are JSON.
    """
    match subscription:
        case Prefix(text):
            return json.dumps({"prefix": text}, ensure_ascii=False)
        case (queue, channel):
            return json.dumps([queue, channel], ensure_ascii=False)
    name = str(subscription)
    return json.dumps(name, ensure_ascii=False) if name.startswith(_JSON) else name


_JSON = ('"', "[", "{")


def split_labels(text: str) -> list[str]:
    """
    Return the parts of *text* between commas outside of JSON, without spaces around.

    Raises:
        JobValueError: If a part begins like JSON and does not end so.
    """
    parts: list[str] = []
    rest = text.strip()
    while True:
        start = _end_of_json(rest) if rest.startswith(_JSON) else 0
        end = rest.find(",", start)
        if end < 0:
            return [*parts, rest]
        parts.append(rest[:end].strip())
        rest = rest[end + 1 :].strip()


def _end_of_json(text: str) -> int:
    try:
        return json.JSONDecoder().raw_decode(text)[1]
    except ValueError as exc:
        raise JobValueError(f"{text!r} begins like JSON: {exc}") from None


def split_slots(part: str) -> tuple[str, str | None]:
    """Return the label of ``LABEL:SLOTS``, and the slots if there are any."""
    end = _end_of_json(part) if part.startswith(_JSON) else 0
    name, colon, slots = part[end:].partition(":")
    return part[:end] + name, slots if colon else None


def read_label(text: str) -> Subscription:
    """
    Return the subscription that `label` wrote.

    Raises:
        JobValueError: If *text* begins like JSON and is no such label.
    """
    if not text.startswith(_JSON):
        return text
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = None
    match value:
        case str():
            return value
        case {"prefix": str(prefix), **others} if not others:
            return Prefix(prefix)
        case [str(queue), str(channel)]:
            return (queue, channel)
    raise JobValueError(
        f"{text!r} begins like JSON, but is no"
        ' ["QUEUE", "CHANNEL"], {"prefix": "TEXT"} or "QUEUE"'
    )
