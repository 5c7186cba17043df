"""Which subscription a job counts for, decided without a database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_jobs._core.subscriptions import (
    Prefix,
    Share,
    check_subscriptions,
    label,
    read_label,
    shares_of,
    split_labels,
    split_slots,
    subscription_of,
)
from sqla_jobs.errors import JobValueError

QUEUES: dict[Any, int] = {
    "mail": 4,
    ("mail", "acme"): 2,
    ("mail", ""): 1,
    Prefix("ma"): 9,
    Prefix("mail-"): 3,
    ("other", "x"): 5,
}


@pytest.mark.parametrize(
    ("queue", "channel", "expected"),
    [
        ("mail", "acme", ("mail", "acme")),
        ("mail", "", ("mail", "")),
        ("mail", "else", "mail"),
        ("mail-1", "acme", Prefix("mail-")),
        ("map", "acme", Prefix("ma")),
        ("ma", "", Prefix("ma")),
        ("other", "x", ("other", "x")),
        ("other", "y", None),
        ("Mail", "", None),
    ],
)
def test_job_counts_for_the_most_specific_subscription(
    queue: str, channel: str, expected: Any
) -> None:
    """A pair comes before a name, a name before a prefix, a long one before a short."""
    assert subscription_of(QUEUES, queue, channel) == expected
    assert subscription_of(list(QUEUES), queue, channel) == expected


def test_shares_of_a_queue_are_disjoint() -> None:
    """The rest of a queue leaves out the channels that are subscribed to alone."""
    assert shares_of(QUEUES, "mail", limit=3) == [
        Share(("mail", "acme"), 2, channel="acme"),
        Share(("mail", ""), 1, channel=""),
        Share("mail", 3, without=("acme", "")),
    ]
    assert shares_of(QUEUES, "mail-x", limit=10) == [Share(Prefix("mail-"), 3)]
    assert shares_of(QUEUES, "other", limit=2) == [Share(("other", "x"), 2, "x")]
    assert shares_of(QUEUES, "nobody", limit=2) == []
    assert shares_of(None, "nobody", limit=2) == [Share(None, 2)]


def test_used_up_subscription_still_keeps_its_jobs() -> None:
    """Without slots a pair takes nothing, and nothing else takes its channel."""
    queues: dict[Any, int] = {"mail": 4, ("mail", "acme"): 0}

    assert shares_of(queues, "mail", limit=9) == [Share("mail", 4, without=("acme",))]
    assert shares_of({"mail": 0, Prefix(""): 5}, "mail", limit=9) == []


@pytest.mark.parametrize(
    "bad", [3, None, ("a",), ("a", "b", "c"), ("a", 1), ["a", "b"], b"mail"]
)
def test_anything_else_is_refused(bad: Any) -> None:
    """The message shows the value and the three forms there are."""
    with pytest.raises(JobValueError, match=r"no name of a queue, no .* pair"):
        check_subscriptions(["mail", bad])


@pytest.mark.parametrize("bad", [3, None, b"mail"])
def test_prefix_is_a_text(bad: Any) -> None:
    """Otherwise it would fail later, in a claim."""
    with pytest.raises(JobValueError, match="Prefix takes a text"):
        Prefix(bad)


# That the database can hold, and whose label can be a prefix, too.
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)


@given(texts, texts)
def test_labels_are_read_back(one: str, other: str) -> None:
    """Any text, be it JSON itself, stays the subscription that it was."""
    for name in (one, label((one, other)), label(Prefix(one)), label(one)):
        for subscription in (name, (name, other), (other, name), Prefix(name)):
            assert read_label(label(subscription)) == subscription


def test_labels_are_for_people() -> None:
    """A usual name is itself, a star has no meaning."""
    assert label("mail") == "mail"
    assert label("*") == "*"
    assert label(("mail", "acmé")) == '["mail", "acmé"]'
    assert label(Prefix("tenant-")) == '{"prefix": "tenant-"}'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mail", [("mail", None)]),
        ("mail:3, sms:x", [("mail", "3"), ("sms", "x")]),
        ('["a,b", "c:d"]:2,{"prefix": ","},x', [
            ('["a,b", "c:d"]', "2"), ('{"prefix": ","}', None), ("x", None),
        ]),
        ('"a,b:c":1', [('"a,b:c"', "1")]),
        ("a,,b", [("a", None), ("", None), ("b", None)]),
    ],
)  # fmt: skip
def test_list_of_labels_is_split(
    text: str, parts: list[tuple[str, str | None]]
) -> None:
    """Commas and colons inside of JSON belong to the names."""
    assert [split_slots(part) for part in split_labels(text)] == parts


@given(st.lists(st.text(), min_size=1))
def test_any_names_can_be_listed(names: list[str]) -> None:
    """A name that is written as JSON is no pattern and has no separators."""
    text = ", ".join(json.dumps(name) + ":1" for name in names)

    assert [split_slots(part) for part in split_labels(text)] == [
        (json.dumps(name), "1") for name in names
    ]
    assert [read_label(json.dumps(name)) for name in names] == names


@pytest.mark.parametrize(
    "text", ["[", "[1]", '["a", 1]', '{"prefix": 1}', '{"a": 1}', '"a', "{}", "[]"]
)
def test_broken_labels_are_refused(text: str) -> None:
    """What begins like JSON is a mistake unless it is one of the three forms."""
    with pytest.raises(JobValueError, match="begins like JSON"):
        read_label(text)
