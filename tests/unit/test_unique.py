"""Unique keys: made of values, and given to one of several new jobs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_jobs._core.options import CONFLICT_POLICIES, MAX_NAME_BYTES
from sqla_jobs._core.states import JobState
from sqla_jobs._core.unique import Live, computed_key, dropped, grouped, refusal
from sqla_jobs.errors import DuplicateJob, JobValueError

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
PLUS_TWO = timezone(timedelta(hours=2))
SIGNATURE = UUID(int=7)


class Color(Enum):
    """A value without JSON of its own."""

    RED = 1


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"a": 1, "b": [1, {"y": 2, "x": 1}]}, {"b": [1, {"x": 1, "y": 2}], "a": 1}),
        (NOON, NOON.astimezone(PLUS_TWO)),
        (Decimal("1.50"), Decimal("1.5")),
        (SIGNATURE, UUID(str(SIGNATURE))),
        ((1, 2), [1, 2]),
    ],
    ids=["order", "time zone", "decimal", "uuid", "tuple"],
)
def test_equal_values_make_the_same_key(one: Any, same: Any) -> None:
    """What is equal gives one key, in whatever form it comes."""
    assert computed_key("k", {"part": one}) == computed_key("k", {"part": same})


def test_different_values_make_different_keys() -> None:
    """No two values share a key, also not those that print alike."""
    values: list[Any] = [
        *(None, 1, "1", True, [1], {"1": 1}, Decimal(1), b"1", Color.RED),
        *(NOON, NOON.replace(tzinfo=None), NOON.date(), date(2031, 1, 1), time(12)),
        *(timedelta(1), timedelta(0, 1), SIGNATURE, SIGNATURE.hex, "1 "),
    ]
    keys = {computed_key("k", {"part": value}) for value in values}
    keys |= {computed_key("j", {"part": 1}), computed_key("k", {"other": 1})}

    assert len(keys) == len(values) + 2


def test_key_is_short_and_shows_the_kind() -> None:
    """A key fits its column's limit, also of the longest kind."""
    assert computed_key("send_invoice", {"args": {}}).startswith("send_invoice:")
    long = computed_key("é" * 100, {"args": "x" * 10_000})
    assert len(long.encode()) <= MAX_NAME_BYTES
    assert long != computed_key("é" * 99 + "e", {"args": "x" * 10_000})


def test_value_without_a_text_is_refused() -> None:
    """A value that has no canonical text is named, with its type."""
    with pytest.raises(JobValueError, match=r"object object.*type object"):
        computed_key("k", {"part": object()})


LIVE = {"k": Live(7, "available")}
RUNNING = {"k": Live(7, "running")}


def outcome(policies: Sequence[str], live: dict[str, Live]) -> Any:
    """Return what becomes of new jobs that want one key, each with a policy."""
    groups = grouped([("k", policy) for policy in policies])
    refused = refusal(groups, live)
    if refused is not None:
        return refused.number
    return {n: gone.job_id or gone.winner for n, gone in dropped(groups, live).items()}


@pytest.mark.parametrize(
    ("policies", "free", "taken", "running"),
    [
        ("raise", {}, 0, 0),
        ("skip", {}, {0: 7}, {0: 7}),
        ("return", {}, {0: 7}, {0: 7}),
        ("replace", {}, {}, 0),
        ("raise raise", 1, 0, 0),
        ("skip raise", 1, 1, 1),
        ("skip skip", {1: 0}, {0: 7, 1: 7}, {0: 7, 1: 7}),
        ("replace skip", {1: 0}, {1: 0}, 0),
        ("skip replace", {0: 1}, {0: 1}, 1),
        ("raise replace", {0: 1}, 0, 0),
        ("replace replace skip", {0: 1, 2: 1}, {0: 1, 2: 1}, 1),
    ],
)
def test_policies_decide_one_after_the_other(
    policies: str, free: Any, taken: Any, running: Any
) -> None:
    """Who raises, or who stands in for whom, is as if they came one by one."""
    assert outcome(policies.split(), {}) == free
    assert outcome(policies.split(), LIVE) == taken
    assert outcome(policies.split(), RUNNING) == running


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(CONFLICT_POLICIES)),
        max_size=8,
    ),
    st.dictionaries(
        st.sampled_from("abc"),
        st.builds(Live, st.integers(1, 9), st.sampled_from(["held", "running"])),
    ),
)
def test_one_job_of_each_key_remains(
    wanted: list[tuple[str, str]], live: dict[str, Live]
) -> None:
    """Unless one raises, each wanted key has one job: the live one or a new one."""
    groups = grouped(wanted)
    if refusal(groups, live) is not None:
        return
    gone = dropped(groups, live)

    kept = [key for n, (key, _) in enumerate(wanted) if n not in gone]
    assert len(kept) == len(set(kept))
    for group in groups:
        stays = group.key in live and not group.replaces
        assert stays == (group.key not in kept)
        if group.replaces and group.key in live:
            assert live[group.key].state != JobState.RUNNING


def test_duplicate_job_survives_pickling() -> None:
    """A pool of processes hands it on with the key and the job."""
    copy = pickle.loads(pickle.dumps(DuplicateJob("taken", "k", 7)))

    assert (str(copy), copy.unique_key, copy.job_id) == ("taken", "k", 7)
