"""Outcomes keep what they are given and refuse times that mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from sqla_jobs._core.outcomes import (
    Cancel,
    Complete,
    Discard,
    Outcome,
    Retry,
    Snooze,
)
from sqla_jobs.errors import JobValueError

AT = datetime(2030, 1, 1, tzinfo=UTC)
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001
AFTER = timedelta(minutes=5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Retry(at=AT, after=AFTER), "Retry takes at= or after=, not both"),
        (lambda: Snooze(at=AT, after=AFTER), "Snooze takes at= or after=, not both"),
        (Snooze, "Snooze needs at= or after="),
        (lambda: Snooze("busy"), "Snooze needs at= or after="),
        (
            lambda: Retry(at=NAIVE),
            r"Retry\(at=datetime.datetime\(2030, .*\)\) is naive; give it a time zone",
        ),
        (lambda: Snooze(at=NAIVE), "is naive; give it a time zone"),
        (lambda: Retry(after=-AFTER), r"Retry\(after=.*\) is negative"),
        (lambda: Snooze(after=-AFTER), r"Snooze\(after=.*\) is negative"),
    ],
)
def test_bad_time_is_refused_with_its_value(
    make: Callable[[], Outcome], message: str
) -> None:
    """A time that cannot be used is refused where the handler states it."""
    with pytest.raises(JobValueError, match=message):
        make()


def test_outcomes_keep_what_they_are_given() -> None:
    """Result, reason and time are attributes for the settle step."""
    assert Complete({"a": 1}).result == {"a": 1}
    assert Complete().result is None
    assert (Retry().at, Retry().after, Retry().reason) == (None, None, None)
    assert (Retry("busy", at=AT).reason, Retry(at=AT).at) == ("busy", AT)
    assert Snooze(after=timedelta(0)).after == timedelta(0)
    assert Snooze(at=AT).at == AT
    assert Cancel("gone").reason == "gone"
    assert Discard("never").reason == "never"


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Retry(), "retry"),
        (Retry("rate limited"), "rate limited"),
        (Snooze("busy", after=AFTER), "busy"),
        (Cancel(), "cancelled by its handler"),
        (Discard(), "discarded by its handler"),
        (Discard("bad address"), "bad address"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_raised_outcome_reads_as_its_reason(outcome: Outcome, text: str) -> None:
    """Outcomes are exceptions whose text is the reason, or a sensible default."""
    with pytest.raises(Outcome) as caught:
        raise outcome

    assert str(caught.value) == text
