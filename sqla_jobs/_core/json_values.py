"""What may stand in a JSON column: checks, text and size of untyped values."""

from __future__ import annotations

import json
import re
import reprlib
from math import isfinite
from typing import Any, NoReturn

from sqla_jobs.errors import PayloadError

MAX_DEPTH = 64
"""How many lists and objects may be nested in each other."""

DEFAULT_LIMIT = 1_000_000
"""The most bytes a payload's JSON text may have, unless its class says otherwise."""

# Python refuses to print longer integers (sys.set_int_max_str_digits).
_HUGE = 10**4300

_FIXES = {
    "set": "use a sorted list",
    "frozenset": "use a sorted list",
    "bytes": "put it into payload_bytes, or base64 text into a str",
    "bytearray": "put it into payload_bytes, or base64 text into a str",
    "memoryview": "put it into payload_bytes, or base64 text into a str",
}

json_text = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode
_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 60

MASK = "***"
"""Stands for a value that is not shown."""

# Around each value in the text of a problem, until it becomes an error.
_START, _END = "\x02", "\x03"
_MARKS = str.maketrans("", "", _START + _END)
_MARKED = re.compile(f"{_START}[^{_END}]*{_END}")


def check_json(value: Any, path: str = "payload") -> None:
    """
    Refuse what PostgreSQL's JSONB cannot hold or give back.

    Allowed are None, bool, int, finite float, str without NUL and lone surrogates,
    lists, tuples (read back as lists) and dicts with such strings as keys, nested at
    most `MAX_DEPTH` deep. JSONB keeps numbers as decimals, so an untyped float of 1e16
    or more is read back as an int.

    Raises:
        PayloadError: If something inside cannot be stored; names the place as *path*
            and what leads on from it, the value and the fix.
    """
    try:
        check(value, 0)
    except Invalid as bad:
        raise bad.at(path) from None


def dump(value: Any, path: str = "payload") -> str:
    """
    Return *value* as compact JSON text that PostgreSQL accepts.

    Raises:
        PayloadError: As `check_json` does.
    """
    check_json(value, path)
    return json_text(value)


def payload_size(text: str) -> int:
    """Return the bytes of *text* in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def check_size(text: str, limit: int = DEFAULT_LIMIT, path: str = "payload") -> None:
    """
    Refuse a JSON text of more than *limit* bytes; default 1,000,000.

    Raises:
        PayloadError: If it is larger; tells both sizes and how to raise the limit.
    """
    if (size := payload_size(text)) > limit:
        raise PayloadError(
            f"{path}: {size:,} bytes of JSON are above the limit of {limit:,}; store"
            f" the data elsewhere and pass its key, or raise __payload_limit__"
            " (bytes) on the job class"
        )


class Invalid(Exception):
    """A problem with a value; every container adds where on the way up."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.steps: list[Any] = []

    def at(self, path: str) -> PayloadError:
        """Return the error for the caller, with the whole path."""
        steps = [step_text(step) for step in reversed(self.steps)]
        if len(steps) > 12:
            steps[6:-6] = ["..."]
        where = path + "".join(steps)
        text = f"{where.removeprefix('.')}: {self.problem}"
        error = PayloadError(text.translate(_MARKS))
        error.hidden = _MARKED.sub(MASK, text)
        return error


class Mismatch(Invalid):
    """The value is of another type than declared; a union then tries its next one."""


def short(value: Any) -> str:
    """Return a bounded repr, for a problem's text, that never raises."""
    try:
        shown = _shortener.repr(value).translate(_MARKS)
    except Exception:  # noqa: BLE001  # a foreign __repr__, or a huge int
        return f"<{type(value).__name__}>"
    return f"{_START}{shown}{_END}"


def check(value: Any, depth: int) -> None:
    """Raise `Invalid` unless *value*, inside *depth* containers, can be stored."""
    kind = type(value)
    if kind is str:
        if not value.isascii() or "\0" in value:
            check_text(value)
    elif kind is int:
        check_int(value)
    elif kind is dict:
        _check_dict(value, depth)
    elif kind is list:
        _check_list(value, depth)
    elif kind is float:
        check_float(value)
    elif value is not None and kind is not bool:
        _check_subclass(value, depth)


def check_text(value: str) -> None:
    """Raise `Invalid` if PostgreSQL cannot hold the string in JSON."""
    if "\0" in value:
        raise Invalid(
            f"{short(value)} holds a NUL character, which PostgreSQL's JSON cannot"
            " store; remove it, or use payload_bytes"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Invalid(
            f"{short(value)} holds the lone surrogate {value[error.start]!r}; decode"
            " the text with errors='replace', or use payload_bytes"
        ) from None


def check_int(value: int) -> None:
    """Raise `Invalid` if the integer has more digits than Python prints."""
    if not -_HUGE < value < _HUGE:
        raise Invalid("an int of more than 4300 digits; store it as a str")


def check_float(value: float) -> None:
    """Raise `Invalid` if the number is not finite."""
    if not isfinite(value):
        raise Invalid(
            f"{value!r} is not finite, and JSON has no NaN or Infinity; use None or a"
            " str"
        )


def check_depth(depth: int) -> None:
    """Raise `Invalid` if a container inside *depth* others is nested too deep."""
    if depth >= MAX_DEPTH:
        raise Invalid(
            f"more than {MAX_DEPTH} lists or objects inside each other (or one that"
            " contains itself); store a flatter value"
        )


def _check_dict(value: dict[Any, Any], depth: int) -> None:
    check_depth(depth)
    key: Any = None
    for key, item in value.items():
        if type(key) is not str or not key.isascii() or "\0" in key:
            _check_key(key)
        try:
            check(item, depth + 1)
        except Invalid as bad:
            bad.steps.append(key)
            raise


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise Invalid(f"the key {short(key)} is not a str; use str keys, as JSON does")
    try:
        check_text(key)
    except Invalid as bad:
        raise Invalid(f"the key {bad.problem}") from None


def _check_list(value: list[Any] | tuple[Any, ...], depth: int) -> None:
    check_depth(depth)
    index = 0
    try:
        for item in value:
            check(item, depth + 1)
            index += 1
    except Invalid as bad:
        bad.steps.append(index)
        raise


def _check_subclass(value: Any, depth: int) -> None:
    """Check what JSON stores as one of its own types, such as a StrEnum or a tuple."""
    match value:
        case str():
            check_text(value)
        case int():
            check_int(value)
        case float():
            check_float(value)
        case dict():
            _check_dict(value, depth)
        case list() | tuple():
            _check_list(value, depth)
        case _:
            _refuse(value)


def _refuse(value: Any) -> NoReturn:
    name = type(value).__name__
    general = f"convert it to JSON values; an argument may be declared Arg[{name}]"
    fix = _FIXES.get(name, general)
    raise Invalid(f"{short(value)} is a {name}, which JSON cannot hold; {fix}")


def step_text(step: Any) -> str:
    """Return a key or an index as part of a path."""
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if step.isidentifier() else f"[{short(step)}]"
