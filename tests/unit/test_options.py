"""Class options: defaults, merging and checks."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any

import pytest

from sqla_jobs._core.options import (
    DEFAULTS,
    Retention,
    checked,
    merged,
    problem_of,
    snake_case,
    unknown,
)
from sqla_jobs.errors import JobDefinitionError, JobValueError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Send", "send"),
        ("SendInvoice", "send_invoice"),
        ("SendHTTPInvoice", "send_http_invoice"),
        ("HTTPSend", "http_send"),
        ("Send2Invoices", "send2_invoices"),
        ("_Private", "_private"),
        ("already_snake", "already_snake"),
        ("Über", "über"),
    ],
)
def test_default_kind_is_snake_case(name: str, kind: str) -> None:
    """The default kind depends on the class's name alone, not on its module."""
    assert snake_case(name) == kind
    assert merged(name, [{}]).kind == kind


def test_documented_defaults() -> None:
    """The defaults are those the documentation states."""
    assert (DEFAULTS.queue, DEFAULTS.priority) == ("default", 0)
    assert (DEFAULTS.max_attempts, DEFAULTS.timeout, DEFAULTS.lease) == (10, None, None)
    assert DEFAULTS.backoff.spec() == "exponential(1,1020,0.1)"
    assert DEFAULTS.retention == Retention(
        completed=timedelta(days=1), cancelled=timedelta(days=7), discarded=None
    )


def test_nearest_class_wins() -> None:
    """Options merge along the MRO; kind and aliases are each class's own."""
    own = {"queue": "own"}
    parent = {"queue": "parent", "priority": 1, "kind": "p", "aliases": ("a",)}
    template = {"priority": 2, "max_attempts": 3}

    found = merged("Child", [own, parent, template])

    assert (found.queue, found.priority, found.max_attempts) == ("own", 1, 3)
    assert (found.kind, found.aliases) == ("child", ())


def test_options_are_frozen() -> None:
    """Options are shared by all jobs of a class, so nobody may change them."""
    with pytest.raises(FrozenInstanceError):
        DEFAULTS.queue = "x"  # type: ignore[misc]


def test_keywords_are_normalized() -> None:
    """Single names stand for tuples, a timedelta for a Retention."""
    given = checked(
        "Send", {"aliases": "old", "load": "a", "retention": timedelta(hours=2)}
    )

    assert given == {
        "aliases": ("old",),
        "load": ("a",),
        "retention": Retention(completed=timedelta(hours=2)),
    }


@pytest.mark.parametrize("keyword", ["cron", "nonsense"])
def test_unknown_keyword_is_refused(keyword: str) -> None:
    """Keywords that do nothing yet are refused, not ignored."""
    with pytest.raises(
        JobDefinitionError, match=f"^Send: unknown class keyword '{keyword}'"
    ):
        checked("Send", {keyword: True})


def test_unknown_suggests_only_what_is_near() -> None:
    """A hint is given for a likely slip and left out otherwise."""
    assert unknown("option", "queu", ["queue"]).endswith("; did you mean 'queue'?")
    assert unknown("option", "zzz", ["queue"]) == "unknown option 'zzz'"


@pytest.mark.parametrize(
    "values",
    [
        {"completed": timedelta(-1)},
        {"cancelled": 5},
        {"discarded": "never"},
    ],
)
def test_wrong_retention_is_refused(values: dict[str, Any]) -> None:
    """A retention is a timedelta of zero or more, or None."""
    (name,) = values
    with pytest.raises(JobValueError, match=rf"Retention\({name}=.*zero or more"):
        Retention(**values)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("queue", ["q", "q" * 200, "ü" * 100], ["", "q" * 201, "ü" * 101, 3, "\0"]),
        ("channel", ["", "c"], ["c" * 201, None, "\ud800"]),
        ("priority", [-32768, 0, 32767], [-32769, 32768, 1.0, True, "1"]),
        ("max_attempts", [1, 2**31 - 1], [0, -1, 2**31, 1.5, True, None]),
        (
            "timeout",
            [None, timedelta(microseconds=1)],
            [timedelta(0), timedelta(-1), 5],
        ),
        (
            "lease",
            [None, timedelta(seconds=3)],
            [timedelta(seconds=2.999), 30],
        ),
    ],
)
def test_limits(key: str, good: list[Any], bad: list[Any]) -> None:
    """Each limit holds exactly at its edge."""
    assert [problem_of(key, value) for value in good] == [None] * len(good)
    assert all(problem_of(key, value) for value in bad)
