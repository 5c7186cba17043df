"""Error texts that every database can store, whatever the handler raised."""

from __future__ import annotations

import re
import traceback

from sqla_jobs._core.conceal import conceal
from sqla_jobs.errors import JobValueError

ERROR_LIMIT = 16_000
"""The most bytes that `error_text` returns."""

TRACEBACK_LIMIT = 64_000
"""The most bytes that `traceback_text` returns."""

CUT = " bytes cut] ...\n"

# PostgreSQL's text holds neither; an error must be recordable all the same.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str, limit: int) -> str:
    """
    Return *text* as any UTF-8 database stores it, in at most *limit* bytes.

    NUL and lone surrogates become U+FFFD. A longer text is cut at a character and ends
    in ``... [N bytes cut]``, which is left out when it does not fit itself.

    Raises:
        JobValueError: If *limit* is negative.
    """
    return _fit(text, limit, head_share=1.0)


def error_text(exc: BaseException) -> str:
    """
    Return ``ValueError: message`` in at most `ERROR_LIMIT` bytes; never raises.

    The values of a failed statement, or of a payload, are taken out of *exc* first.
    """
    conceal(exc)
    name = type(exc).__name__
    try:
        message = str(exc)
    except BaseException as failure:  # noqa: BLE001  # the handler's own code
        message = f"<its message failed with {type(failure).__name__}>"
    return clean_text(f"{name}: {message}" if message else name, ERROR_LIMIT)


def traceback_text(exc: BaseException) -> str:
    """
    Return the traceback of *exc*, without locals, in at most `TRACEBACK_LIMIT` bytes.

    A longer one loses its middle. Never raises: what cannot be formatted is replaced by
    `error_text`. Values are taken out of *exc* as there.
    """
    conceal(exc)
    try:
        text = "".join(traceback.format_exception(exc))
    except Exception:  # noqa: BLE001  # the handler's own code
        return error_text(exc)
    return _fit(text, TRACEBACK_LIMIT, head_share=0.25)


def is_whole(text: str) -> bool:
    """Return whether `traceback_text` could show all of a raised error."""
    return CUT not in text and "Traceback (most recent call last)" in text


def _fit(text: str, limit: int, *, head_share: float) -> str:
    if limit < 0:
        raise JobValueError(f"limit={limit} is negative; give 0 or more bytes")
    text = _UNSTORABLE.sub("\ufffd", text)
    data = text.encode()
    if len(data) <= limit:
        return text
    room = limit - len(_marker(len(data), head_share))
    if room < 0:
        return _decode_whole(data[:limit])
    head = _decode_whole(data[: int(room * head_share)])
    tail_bytes = room - int(room * head_share)
    tail = _decode_whole(data[-tail_bytes:]) if tail_bytes else ""
    cut = len(data) - len(head.encode()) - len(tail.encode())
    return f"{head}{_marker(cut, head_share)}{tail}"


def _marker(cut: int, head_share: float) -> str:
    return f"... [{cut} bytes cut]" + ("" if head_share == 1.0 else CUT[-5:])


def _decode_whole(data: bytes) -> str:
    """Decode a slice of valid UTF-8 without the characters it splits."""
    return data.decode(errors="ignore")
