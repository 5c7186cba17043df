"""
Errors without the values of rows: what is logged and stored must not repeat them.

SQLAlchemy's errors list a statement's parameters, PostgreSQL's repeat keys, rows and
lines of a COPY, its data errors the value itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from sqla_jobs._core.json_values import MASK
from sqla_jobs.errors import PayloadError

# SQLAlchemy writes the error of asyncpg so.
_PREFIX = re.compile(r"^<class '[\w.]+'>: ")
# From here on the text of a data error is about the value.
_VALUE = re.compile(r"""["']|: """)


def conceal(exc: BaseException) -> None:
    """
    Take values out of the text of *exc* and of what led to it, in place.

    What a program can ask for stays, such as ``exc.params`` and ``exc.orig.diag``.
    Never raises.
    """
    for one in _chain(exc):
        with suppress(Exception):  # a foreign exception's own code
            _conceal_one(one)


def _chain(exc: BaseException) -> Iterator[BaseException]:
    seen, waiting = set[int](), [exc]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        parts = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        waiting += [e for e in (one.__cause__, one.__context__, *parts) if e]


def _conceal_one(exc: Any) -> None:
    if isinstance(exc, PayloadError):
        if exc.hidden is not None:
            exc.args = (exc.hidden,)
            # What a codec's own library said of the value.
            exc.__cause__ = exc.__context__ = None
    elif hasattr(exc, "hide_parameters"):  # SQLAlchemy's
        exc.hide_parameters = True
        orig = exc.orig
        if orig is None:
            return
        kind = type(orig)
        exc.args = (f"({kind.__module__}.{kind.__name__}) {_plain(orig)}",)
        if _state(orig) is None and kind.__module__ == "builtins":
            _conceal_origin(orig)
    elif _state(exc) is not None:
        text, fields = _plain(exc), exc.args[0] if exc.args else None
        if isinstance(fields, dict):
            exc.args = ({"S": fields.get("S"), "C": fields.get("C"), "M": text},)
        else:
            exc.args = (text,)
        for name in ("detail", "hint"):  # asyncpg's, parts of its text
            if hasattr(exc, name):
                setattr(exc, name, None)


def _conceal_origin(exc: BaseException | None) -> None:
    """Empty the texts of what a type of SQLAlchemy's raised about a value."""
    while exc is not None:
        exc.args = (_plain(exc),)
        exc = exc.__cause__


def _plain(exc: Any) -> str:
    """Return the text of a driver's error, or of a type's, without values."""
    fields = exc.args[0] if exc.args else None
    # pg8000's: the fields of the server's message
    text = str(fields.get("M") if isinstance(fields, dict) else exc)
    text, state = _PREFIX.sub("", text), _state(exc)
    if state is None and type(exc).__module__ != "builtins":
        return text  # there was no answer: about the connection
    line = text.partition("\n")[0]
    if state is not None and not state.startswith("22"):
        return line
    head = _VALUE.split(line, maxsplit=1)[0]
    return line if head == line else f"{head.rstrip()} {MASK}".lstrip()


def _state(exc: Any) -> str | None:
    state = getattr(exc, "sqlstate", None) or getattr(exc, "pgcode", None)
    fields = exc.args[0] if exc.args else None
    if isinstance(fields, dict):
        state = fields.get("C")
    return state if isinstance(state, str) else None
