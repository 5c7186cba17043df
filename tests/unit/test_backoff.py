"""Delays before the next attempt: their size, bounds, stored text and messages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_jobs._core.backoff import (
    DEFAULT_BACKOFF,
    MAX_DELAY,
    Backoff,
    constant,
    custom,
    exponential,
    linear,
    parse_backoff,
)
from sqla_jobs.errors import JobValueError

SECOND = timedelta(seconds=1)
TINY = timedelta(microseconds=1)

durations = st.timedeltas(min_value=timedelta(0), max_value=MAX_DELAY)
steps = st.timedeltas(min_value=TINY, max_value=MAX_DELAY)
fractions = st.floats(0, 1)
attempts = st.one_of(
    st.integers(1, 50), st.sampled_from([10_000, 10**9, 10**400]), st.integers(1)
)
backoffs = st.one_of(
    st.builds(constant, durations),
    st.builds(linear, step=steps, cap=durations, jitter=fractions),
    st.builds(
        exponential,
        base=steps,
        cap=durations,
        jitter=fractions,
        factor=st.floats(1, 1000),
    ),
)


@given(backoffs, attempts, fractions)
def test_delay_is_never_negative_nor_above_the_cap(
    backoff: Backoff, attempt: int, rand: float
) -> None:
    """No attempt number, however large, and no luck leaves 0 to cap."""
    assert timedelta(0) <= backoff.delay(attempt, rand) <= backoff.cap


@given(backoffs, st.integers(1, 10**12))
def test_delay_without_jitter_never_shrinks(backoff: Backoff, attempt: int) -> None:
    """A later attempt never waits less than an earlier one."""
    assert backoff.delay(attempt) <= backoff.delay(attempt + 1)


@given(backoffs)
def test_spec_reads_back_as_the_same_backoff(backoff: Backoff) -> None:
    """The stored text loses nothing, microseconds and float digits included."""
    assert parse_backoff(backoff.spec()) == backoff


@pytest.mark.parametrize(
    ("backoff", "seconds"),
    [
        (constant(3 * SECOND), [3, 3, 3, 3]),
        (linear(step=2 * SECOND, cap=7 * SECOND), [2, 4, 6, 7]),
        (exponential(cap=5 * SECOND), [1, 2, 4, 5]),
        (exponential(factor=3), [1, 3, 9, 27]),
        (exponential(cap=timedelta(0)), [0, 0, 0, 0]),
        (custom(lambda attempt: attempt * SECOND), [1, 2, 3, 4]),
    ],
    ids=lambda value: value.spec() if isinstance(value, Backoff) else "",
)
def test_delay_of_the_first_attempts(backoff: Backoff, seconds: list[int]) -> None:
    """Each shape gives the delays its docstring states."""
    delays = [backoff.delay(attempt).total_seconds() for attempt in (1, 2, 3, 4)]

    assert delays == seconds


def test_jitter_moves_the_delay_both_ways() -> None:
    """The ends of *rand* are the ends of the jitter, the middle is none."""
    backoff = exponential(base=10 * SECOND, jitter=0.1)

    delays = [backoff.delay(1, rand).total_seconds() for rand in (0, 0.5, 1)]

    assert delays == [9, 10, 11]


@pytest.mark.parametrize(
    ("backoff", "spec"),
    [
        (DEFAULT_BACKOFF, "exponential(1,1020,0.1)"),
        (exponential(factor=1.5, jitter=0), "exponential(1,1020,0,1.5)"),
        (exponential(base=TINY, jitter=1e-07), "exponential(0.000001,1020,1e-07)"),
        (linear(), "linear(60,1020,0.1)"),
        (constant(timedelta(milliseconds=1500)), "constant(1.5)"),
        (constant(timedelta(0)), "constant(0)"),
        (custom(lambda attempt: SECOND), "custom"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spec_text_is_stable(backoff: Backoff, spec: str) -> None:
    """Rows of earlier releases hold these texts."""
    assert backoff.spec() == spec


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "none",
        "exponential",
        "exponential()",
        "exponential(1,1020)",
        "exponential(1,1020,0.1) ",
        "exponential(1,1020,0.1,2,3)",
        "exponential(-1,1020,0.1)",
        "exponential(1,1020,2)",
        "exponential(0,1020,0.1)",
        "exponential(1,1020,0.1,0.5)",
        "exponential(1,1020,nan)",
        "exponential(\u0661,1020,0.1)",
        "linear(1,9999999999,0)",
        "constant(1,2)",
        "constant(1.0000001)",
        "constant(__import__('os'))",
        "custom(1)",
        "1" * 10_000,
    ],
)
def test_parse_refuses_anything_else(spec: str) -> None:
    """A text that `spec` never writes is an error that shows it, briefly."""
    with pytest.raises(JobValueError, match=r"^backoff ") as caught:
        parse_backoff(spec)

    assert len(str(caught.value)) < 200


@given(st.text())
def test_parse_raises_nothing_but_its_own_error(spec: str) -> None:
    """A row may hold any text; only JobValueError comes out."""
    with pytest.raises(JobValueError):
        parse_backoff(spec)


def test_parse_custom_needs_the_class_function() -> None:
    """The word ``custom`` stands for what the caller passes, else it is refused."""
    backoff = custom(lambda attempt: SECOND)

    assert parse_backoff("custom", backoff) is backoff
    assert parse_backoff("custom", custom=backoff).delay(7) == SECOND
    with pytest.raises(JobValueError, match=r"set backoff=custom\(fn\) on the class"):
        parse_backoff("custom")


def _broken(attempt: int) -> timedelta:
    raise LookupError("no table")


class _Callable:
    """A callable object without a name, and not hashable."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, attempt: int) -> timedelta:
        """Return one second."""
        return SECOND


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (_broken, r"function _broken\(3\) raised LookupError: no table"),
        (lambda attempt: 5, r"<lambda>\(result for 3=5\) must be a timedelta"),
        (lambda attempt: -SECOND, r"<lambda>\(result for 3=.*\) is negative"),
        (lambda attempt: timedelta.max, r"<lambda>\(result for 3=.* above 3660 days"),
    ],
    ids=["raises", "number", "negative", "huge"],
)
def test_custom_names_the_function_that_failed(
    fn: Callable[[int], Any], message: str
) -> None:
    """A broken or absurd function is named together with its attempt."""
    with pytest.raises(JobValueError, match=message):
        custom(fn).delay(3)


def test_custom_accepts_any_callable() -> None:
    """An unnamed, unhashable callable works, through `parse_backoff` too."""
    backoff = custom(_Callable())

    assert parse_backoff("custom", backoff).delay(1) == SECOND


async def _async(attempt: int) -> timedelta:
    return SECOND


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(-SECOND), r"constant\(delay=.*\) is negative"),
        (lambda: constant(5), r"constant\(delay=5\) must be a timedelta"),  # type: ignore[arg-type]
        (lambda: constant(timedelta.max), "above 3660 days"),
        (lambda: linear(step=timedelta(0)), r"linear\(step=.*constant\(timedelta\(0"),
        (lambda: linear(cap=-SECOND), r"linear\(cap=.*\) is negative"),
        (lambda: linear(jitter=1.1), r"linear\(jitter=1.1\) must be from 0 to 1"),
        (lambda: exponential(base=timedelta(0)), r"exponential\(base=.* above zero"),
        (lambda: exponential(base=-SECOND), r"exponential\(base=.*\) is negative"),
        (lambda: exponential(cap=17), r"exponential\(cap=17\) must be a timedelta"),  # type: ignore[arg-type]
        (lambda: exponential(jitter=-0.1), r"jitter=-0.1\) must be from 0 to 1"),
        (lambda: exponential(jitter=float("nan")), "jitter=nan"),
        (lambda: exponential(jitter="0.1"), "jitter='0.1'"),  # type: ignore[arg-type]
        (lambda: exponential(jitter=True), "jitter=True"),
        (lambda: exponential(factor=0.5), r"factor=0.5\) must be from 1 to 1000"),
        (lambda: exponential(factor=10**400), "must be from 1 to 1000"),
        (lambda: custom(SECOND), "needs an ordinary function"),  # type: ignore[arg-type]
        (lambda: custom(_async), "needs an ordinary function"),  # type: ignore[arg-type]
        (lambda: DEFAULT_BACKOFF.delay(0), "attempt=0 must be 1 or more"),
        (lambda: DEFAULT_BACKOFF.delay(1, rand=1.5), "rand=1.5 must be from 0 to 1"),
    ],
)
def test_bad_value_is_shown_with_the_rule(
    make: Callable[[], Any], message: str
) -> None:
    """A wrong argument is refused when it is given, with its value and the rule."""
    with pytest.raises(JobValueError, match=message):
        make()
