"""How long a failed job waits before its next attempt."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal

from sqla_jobs._core.text import error_text
from sqla_jobs.errors import JobValueError

MAX_DELAY = timedelta(days=3660)
"""The longest delay a backoff may state: about ten years."""

_CAP = timedelta(minutes=17)
_ZERO = timedelta(0)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    A delay before each next attempt; made by `constant`, `linear`, `exponential` or
    `custom`.
    """

    shape: Literal["constant", "linear", "exponential", "custom"]
    base: timedelta
    cap: timedelta
    jitter: float = 0.0
    factor: float = 2.0
    fn: Callable[[int], timedelta] | None = None

    def delay(self, attempt: int, rand: float = 0.5) -> timedelta:
        """
        Return the delay after *attempt* has failed; at least 0, at most the cap.

        The cap holds after the jitter, so that no delay is longer than stated.

        Args:
            attempt: Attempts already made, 1 or more.
            rand: A number from 0 to 1; default 0.5, which means no jitter.

        Raises:
            JobValueError: If an argument is out of range, or the function of a custom
                backoff fails or returns no usable delay.
        """
        if attempt < 1:
            raise JobValueError(f"attempt={attempt} must be 1 or more")
        if not 0 <= rand <= 1:
            raise JobValueError(f"rand={rand!r} must be from 0 to 1")
        if self.fn is not None:
            return _call(self.fn, attempt)
        seconds = self._uncapped_seconds(attempt) * (1 + self.jitter * (2 * rand - 1))
        return timedelta(seconds=min(seconds, self.cap.total_seconds()))

    def _uncapped_seconds(self, attempt: int) -> float:
        """Return the delay before jitter; no more than the cap, so it stays finite."""
        base, cap = self.base.total_seconds(), self.cap.total_seconds()
        try:
            match self.shape:
                case "linear":
                    return min(base * attempt, cap)
                case "exponential":
                    return min(base * self.factor ** (attempt - 1), cap)
                case _:
                    return base
        except OverflowError:
            return cap

    def spec(self) -> str:
        """
        Return the text a job's row stores, e.g. ``exponential(1,1020,0.1)``.

        Durations are in seconds. `parse_backoff` reads it back exactly.
        """
        numbers = [_seconds_text(self.base), _seconds_text(self.cap)]
        numbers.append(_float_text(self.jitter))
        match self.shape:
            case "custom":
                return "custom"
            case "constant":
                numbers = numbers[:1]
            case "exponential" if self.factor != 2.0:
                numbers.append(_float_text(self.factor))
            case _:
                pass
        return f"{self.shape}({','.join(numbers)})"


def constant(delay: timedelta) -> Backoff:
    """
    Return a backoff that always waits *delay*; zero means at once.

    Raises:
        JobValueError: If *delay* is no duration from 0 to `MAX_DELAY`.
    """
    _check_duration("constant", "delay", delay)
    return Backoff("constant", delay, delay)


def linear(
    *,
    step: timedelta = timedelta(minutes=1),
    cap: timedelta = _CAP,
    jitter: float = 0.1,
) -> Backoff:
    """
    Return a backoff that waits *step* longer after each attempt: step, 2 steps, ...

    Args:
        step: Above zero; default 1 minute.
        cap: The longest delay, jitter included; default 17 minutes.
        jitter: Largest change either way, as a fraction of the delay from 0 to 1;
            default 0.1.

    Raises:
        JobValueError: If an argument is out of range.
    """
    _check_growth("linear", "step", step, cap=cap, jitter=jitter)
    return Backoff("linear", step, cap, float(jitter))


def exponential(
    *,
    base: timedelta = timedelta(seconds=1),
    cap: timedelta = _CAP,
    jitter: float = 0.1,
    factor: float = 2.0,
) -> Backoff:
    """
    Return a backoff that multiplies the delay by *factor* after each attempt.

    Args:
        base: The delay after the first attempt, above zero; default 1 s.
        cap: The longest delay, jitter included; default 17 minutes.
        jitter: Largest change either way, as a fraction of the delay from 0 to 1;
            default 0.1.
        factor: From 1 to 1000; default 2.

    Raises:
        JobValueError: If an argument is out of range.

    Source:
        Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
    """
    _check_growth("exponential", "base", base, cap=cap, jitter=jitter)
    if not (_is_number(factor) and 1 <= factor <= 1000):
        raise JobValueError(f"exponential(factor={factor!r}) must be from 1 to 1000")
    return Backoff("exponential", base, cap, float(jitter), float(factor))


def custom(fn: Callable[[int], timedelta]) -> Backoff:
    """
    Return a backoff that asks ``fn(attempt)``, attempt being 1 or more.

    The row stores only the word ``custom``; the function is found on the job's class.

    Raises:
        JobValueError: If *fn* is no ordinary function.
    """
    if inspect.iscoroutinefunction(fn) or not callable(fn):
        raise JobValueError(
            f"custom({fn!r}) needs an ordinary function (attempt: int) -> timedelta"
        )
    return Backoff("custom", _ZERO, MAX_DELAY, fn=fn)


def parse_backoff(spec: str, custom: Backoff | None = None) -> Backoff:
    """
    Return the backoff that *spec*, as written by `Backoff.spec`, describes.

    Args:
        spec: The text of a job's row.
        custom: What ``custom`` stands for; default None, which refuses it.

    Raises:
        JobValueError: If *spec* is nothing that `Backoff.spec` writes.
    """
    if spec == "custom":
        if custom is None:
            raise JobValueError(
                "the row's backoff is 'custom', but its class declares no function;"
                " set backoff=custom(fn) on the class"
            )
        return custom
    return _parse(spec)


@lru_cache(maxsize=1024)
def _parse(spec: str) -> Backoff:
    if (found := _SPEC.fullmatch(spec)) is None:
        raise JobValueError(f"backoff {spec[:80]!r} is not one; {_EXAMPLE}")
    shape, *numbers = found[0][:-1].replace("(", ",").split(",")
    return _from_numbers(spec, shape, numbers)


_EXAMPLE = "write e.g. 'exponential(1,1020,0.1)', durations in seconds"
_DURATION = r"[0-9]{1,10}(?:\.[0-9]{1,6})?"
_FLOAT = r"[0-9]{1,400}(?:\.[0-9]{1,40})?(?:e[+-]?[0-9]{1,3})?"
_SPEC = re.compile(
    rf"constant\({_DURATION}\)"
    rf"|linear\({_DURATION},{_DURATION},{_FLOAT}\)"
    rf"|exponential\({_DURATION},{_DURATION},{_FLOAT}(?:,{_FLOAT})?\)"
)


def _from_numbers(spec: str, shape: str, numbers: list[str]) -> Backoff:
    base = _duration(numbers[0])
    try:
        match shape:
            case "constant":
                return constant(base)
            case "linear":
                cap, jitter = _duration(numbers[1]), float(numbers[2])
                return linear(step=base, cap=cap, jitter=jitter)
            case _:
                cap, jitter = _duration(numbers[1]), float(numbers[2])
                factor = float(numbers[3]) if len(numbers) > 3 else 2.0
                return exponential(base=base, cap=cap, jitter=jitter, factor=factor)
    except JobValueError as error:
        raise JobValueError(f"backoff {spec!r}: {error}") from None


def _call(fn: Callable[[int], timedelta], attempt: int) -> timedelta:
    name = getattr(fn, "__qualname__", repr(fn))
    try:
        delay: Any = fn(attempt)
    except Exception as error:
        raise JobValueError(
            f"the backoff function {name}({attempt}) raised {error_text(error)}"
        ) from error
    _check_duration(f"the backoff function {name}", f"result for {attempt}", delay)
    return timedelta(microseconds=delay // _MICROSECOND)


def _check_growth(
    function: str, name: str, base: Any, *, cap: Any, jitter: Any
) -> None:
    _check_duration(function, name, base)
    _check_duration(function, "cap", cap)
    if base == _ZERO:
        raise JobValueError(
            f"{function}({name}={base!r}) must be above zero;"
            " for no delay use constant(timedelta(0))"
        )
    if not (_is_number(jitter) and 0 <= jitter <= 1):
        raise JobValueError(f"{function}(jitter={jitter!r}) must be from 0 to 1")


def duration_problem(value: Any) -> str | None:
    """Return what is wrong with a duration from 0 to `MAX_DELAY`, None if nothing."""
    if not isinstance(value, timedelta):
        return "must be a timedelta"
    if value < _ZERO:
        return "is negative; give zero or more"
    if value > MAX_DELAY:
        return f"is above {MAX_DELAY.days} days"
    return None


def _check_duration(function: str, name: str, value: Any) -> None:
    if problem := duration_problem(value):
        raise JobValueError(f"{function}({name}={value!r}) {problem}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds_text(duration: timedelta) -> str:
    seconds, micros = divmod(duration // _MICROSECOND, 1_000_000)
    return f"{seconds}.{micros:06}".rstrip("0").rstrip(".") if micros else f"{seconds}"


def _float_text(number: float) -> str:
    return repr(number).removesuffix(".0")


def _duration(text: str) -> timedelta:
    seconds, _, fraction = text.partition(".")
    return timedelta(seconds=int(seconds), microseconds=int(fraction.ljust(6, "0")))


DEFAULT_BACKOFF = exponential()
"""From 1 s, doubling, at most 17 minutes, jitter 0.1."""
