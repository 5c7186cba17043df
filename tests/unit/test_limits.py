"""Admission, token buckets and what claimers remember: pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from sqla_jobs import JobValueError, constant, custom
from sqla_jobs._core.limits import Bucket, QueueSettings, admitted, checked_setting
from sqla_jobs._core.memory import HOPELESS, PATIENCE, SOON, Memory

NOW = datetime(2050, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def bucket(tokens: float | None, passed: timedelta, **settings: Any) -> Bucket:
    """Return a bucket of 3 per second that held *tokens* some time ago."""
    given = QueueSettings("q", **{"rate_limit": 3, **settings})
    made = Bucket.of(given, tokens=tokens, filled_at=NOW - passed, now=NOW)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("tokens", "passed", "whole"),
    [
        (None, 0 * SECOND, 3),
        (0, 0 * SECOND, 0),
        (0, timedelta(microseconds=333_333), 0),
        (0, timedelta(microseconds=333_334), 1),
        (0.5, SECOND / 3, 1),
        (0, SECOND, 3),
        (2, 100 * SECOND, 3),
        (1, -5 * SECOND, 1),
        (-1, SECOND, 2),
    ],
    ids=str,
)
def test_bucket_fills_with_time(
    tokens: float | None, passed: timedelta, whole: int
) -> None:
    """Tokens come back evenly, up to the size; a clock that went back takes none."""
    assert bucket(tokens, passed).whole == whole


def test_bucket_loses_nothing_to_rounding() -> None:
    """A third of a second gives one of three tokens each time, for a thousand times."""
    tokens, taken = 0.0, 0
    for _ in range(999):
        one = bucket(tokens, timedelta(microseconds=333_334))
        taken += one.whole
        tokens = one.tokens - one.whole

    assert taken == 999


def test_bucket_says_when_the_next_token_comes() -> None:
    """The wait is that of the missing part; a rate without a period is per second."""
    assert bucket(0.5, 0 * SECOND).next_in == pytest.approx(0.5 / 3)
    assert bucket(0, 0 * SECOND, rate_period=60 * SECOND).next_in == pytest.approx(20)


@pytest.mark.parametrize(
    ("settings", "running", "tokens", "expected"),
    [
        ({}, 99, None, 10),
        ({"max_running": 5}, 0, None, 5),
        ({"max_running": 5}, 4, None, 1),
        ({"max_running": 5}, 9, None, 0),
        ({"rate_limit": 4}, 9, 2.5, 2),
        ({"rate_limit": 4, "max_running": 5}, 4, 2.5, 1),
        ({"max_running": 50}, 0, None, 10),
    ],
    ids=str,
)
def test_admission_is_the_least_of_all_limits(
    settings: dict[str, Any], running: int, tokens: float | None, expected: int
) -> None:
    """Of what is asked, what may run and the tokens the smallest; never below 0."""
    given = QueueSettings("q", **settings)
    filled = Bucket.of(given, tokens=tokens, filled_at=NOW, now=NOW)

    assert admitted(given, asked=10, running=running, bucket=filled) == expected


BAD: list[tuple[str, Any, str]] = [
    ("name", "", "must not be empty"),
    ("name", "x" * 201, "201 bytes"),
    ("name", 5, "must be a string"),
    ("paused", 1, "True or False"),
    ("fair", None, "True or False"),
    ("max_running", 0, "paused=True stops a queue"),
    ("max_running", -1, "from 1 to"),
    ("max_running", True, "from 1 to"),
    ("max_running_per_channel", 2.0, "from 1 to"),
    ("rate_limit", 2**31, "from 1 to 2147483647"),
    ("rate_limit", "5", "from 1 to"),
    ("rate_period", timedelta(0), "above zero"),
    ("rate_period", timedelta(seconds=-1), "negative"),
    ("rate_period", timedelta(days=9999), "above 3660 days"),
    ("rate_period", 60, "must be a timedelta"),
    ("backoff", "often", "cannot be used: backoff 'often'"),
    ("backoff", "custom", "set it on the classes"),
    ("backoff", custom(lambda _: SECOND), "set it on the classes"),
    ("backoff", 5, "must be a backoff"),
    ("on_discard", "blok", "did you mean 'block'?"),
    ("on_discard", None, "must be 'skip' or 'block'"),
]


@pytest.mark.parametrize(
    ("name", "value", "text"), BAD, ids=[f"{name} {text}" for name, _, text in BAD]
)
def test_bad_setting_is_refused(name: str, value: Any, text: str) -> None:
    """The error names whose setting it is, the value, and what to give instead."""
    with pytest.raises(JobValueError, match=r"queue 'q': ") as caught:
        checked_setting("queue 'q'", name, value)

    assert text in str(caught.value)
    if name != "backoff":
        assert f"{name}={value!r}" in str(caught.value)


def test_good_settings_stay_as_they_are() -> None:
    """A backoff is kept as the text that the rows of jobs have."""
    assert checked_setting("q", "max_running", 2**31 - 1) == 2**31 - 1
    assert checked_setting("q", "rate_limit", None) is None
    assert checked_setting("q", "backoff", constant(5 * SECOND)) == "constant(5)"
    assert checked_setting("q", "backoff", "constant(5)") == "constant(5)"


# Memory


def test_looks_in_vain_are_followed_by_patience() -> None:
    """After looks in vain there are none for a multiple of the time that they took."""
    memory = Memory()
    assert memory.may_look(100.0)
    memory.looked(100.5, 0.5, vain=9, found=0, complete=True)
    assert memory.take_again() is None

    assert not memory.may_look(101.0)
    assert memory.take_again() == pytest.approx(PATIENCE * 0.5 - 0.5)
    assert memory.may_look(100.5 + PATIENCE * 0.5)


def test_looks_that_found_something_cost_no_patience() -> None:
    """Of a look's time only the part in vain counts."""
    memory = Memory()
    memory.looked(100.0, 0.5, vain=0, found=9, complete=True)
    assert memory.may_look(100.0)
    memory.looked(100.0, 0.5, vain=9, found=9, complete=True)
    assert not memory.may_look(100.0 + PATIENCE * 0.24)
    assert memory.may_look(100.0 + PATIENCE * 0.25)


def test_incomplete_look_is_repeated_but_not_for_ever() -> None:
    """A claimer hurries on while there is hope; a notification gives it hope again."""
    memory, look = Memory(), partial(Memory.looked, now=100.0, seconds=0.0, found=0)
    look(memory, vain=HOPELESS - 1, complete=False)
    assert memory.take_again() == SOON
    assert memory.take_again() is None

    look(memory, vain=1, complete=False)
    assert memory.take_again() is None
    memory.woke()
    look(memory, vain=1, complete=False)
    assert memory.take_again() == SOON
    look(memory, vain=1, complete=True)
    assert memory.take_again() is None


def test_soonest_claim_counts() -> None:
    """Of several reasons to claim again the nearest decides."""
    memory = Memory()
    for seconds in (0.5, 0.02, 3.0):
        memory.again_in(seconds)

    assert memory.take_again() == 0.02


def test_queue_rests_until_a_job_of_it_is_settled() -> None:
    """A queue without slots is left alone for a moment, or until one is free here."""
    memory = Memory()
    memory.rest("a", 100.0, 5.0)
    memory.rest("b", 100.0, 5.0)
    memory.settled("b", "", ordered=False)

    assert memory.awake(["a", "b", "c"], 104.9) == ["b", "c"]
    assert memory.awake(["a", "b", "c"], 105.0) == ["a", "b", "c"]


def test_settlement_beside_a_claim_is_not_missed() -> None:
    """A claim under way does not see a slot that frees: no rest, and one more claim."""
    memory = Memory()
    memory.begin()
    memory.rest("a", 100.0)
    assert memory.take_again() is None
    memory.begin()
    memory.settled("a", "", ordered=False)
    memory.rest("a", 100.0)

    assert memory.awake(["a"], 100.0) == ["a"]
    assert memory.take_again() == 0.0
    memory.begin()
    assert memory.take_again() is None


def test_missing_tokens_leave_nothing_unfinished() -> None:
    """A job that may not begin before a time is none that was overlooked."""
    memory = Memory()
    memory.again_in(0.5, unfinished=False)
    assert not memory.unfinished
    memory.again_in(3.0)
    memory.again_in(0.2, unfinished=False)
    assert memory.unfinished
    memory.begin()
    assert not memory.unfinished


def test_freed_channels_are_told_once() -> None:
    """Channels of ordered jobs that were settled are handed out once, by queue."""
    memory = Memory()
    memory.settled("a", "x", ordered=True)
    memory.settled("a", "y", ordered=False)
    memory.settled("b", "z", ordered=True)

    assert memory.take_freed(lambda queue: queue == "a") == [("a", "x")]
    assert memory.take_freed(lambda _: True) == [("b", "z")]
    assert memory.take_freed(lambda _: True) == []
