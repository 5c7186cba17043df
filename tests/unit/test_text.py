"""Error texts stay storable and bounded, whatever was raised."""

from __future__ import annotations

from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_jobs._core.text import (
    ERROR_LIMIT,
    TRACEBACK_LIMIT,
    clean_text,
    error_text,
    traceback_text,
)
from sqla_jobs.errors import JobValueError

characters = st.one_of(
    st.characters(),
    st.characters(categories=["Cs"]),
    st.sampled_from(["\x00", "\ufffd", "é", "\U0001f600"]),
)
texts = st.text(characters, max_size=200)


class UnprintableError(Exception):
    """An error whose texts cannot be had."""

    def __str__(self) -> str:
        """Fail."""
        raise OSError("no")

    __repr__ = __str__


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


@given(texts, st.integers(0, 300))
def test_clean_text_is_storable_and_within_its_limit(text: str, limit: int) -> None:
    """The result encodes to UTF-8 without NUL, in no more bytes than allowed."""
    data = clean_text(text, limit).encode()

    assert len(data) <= limit
    assert b"\x00" not in data


@given(texts)
def test_clean_text_keeps_each_storable_character(text: str) -> None:
    """Only what PostgreSQL refuses is replaced, one for one."""
    cleaned = clean_text(text, 10_000)

    assert len(cleaned) == len(text)
    for before, after in zip(text, cleaned, strict=True):
        bad = before == "\x00" or "\ud800" <= before <= "\udfff"
        assert after == ("\ufffd" if bad else before)


@given(st.text(min_size=41), st.integers(40, 60))
def test_clean_text_counts_the_bytes_it_cut(text: str, limit: int) -> None:
    """A cut text is a prefix plus the number of bytes that are missing."""
    cleaned = clean_text(text, limit)
    whole = text.replace("\x00", "\ufffd")

    if len(whole.encode()) <= limit:
        assert cleaned == whole
        return
    head, _, tail = cleaned.rpartition("... [")
    missing = int(tail.removesuffix(" bytes cut]"))
    assert whole.startswith(head)
    assert len(head.encode()) + missing == len(whole.encode())


@pytest.mark.parametrize(
    ("text", "limit", "cleaned"),
    [
        ("abc", 3, "abc"),
        ("a\x00\udc80b", 100, "a\ufffd\ufffdb"),
        ("x" * 100, 30, "x" * 11 + "... [89 bytes cut]"),
        ("é" * 100, 30, "é" * 5 + "... [190 bytes cut]"),
        ("abc", 2, "ab"),
        ("éé", 3, "é"),
        ("abc", 0, ""),
    ],
)
def test_clean_text_examples(text: str, limit: int, cleaned: str) -> None:
    """The marker counts inside the limit; where it cannot fit, there is none."""
    assert clean_text(text, limit) == cleaned


def test_clean_text_refuses_a_negative_limit() -> None:
    """A limit below zero is a mistake of the caller."""
    with pytest.raises(JobValueError, match="limit=-1 is negative; give 0 or more"):
        clean_text("a", -1)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such file"), "ValueError: no such file"),
        (KeyError("id"), "KeyError: 'id'"),
        (ValueError(), "ValueError"),
        (ValueError("a\x00b"), "ValueError: a\ufffdb"),
        (
            UnprintableError(),
            "UnprintableError: <its message failed with OSError>",
        ),
        (KeyboardInterrupt("stop"), "KeyboardInterrupt: stop"),
    ],
    ids=["message", "quoted", "empty", "nul", "unprintable", "base exception"],
)
def test_error_text_is_type_and_message(error: BaseException, text: str) -> None:
    """The text is the type's name and the message, also when that one fails."""
    assert error_text(error) == text


@given(texts)
def test_error_text_is_storable(text: str) -> None:
    """No message makes a failure unrecordable."""
    assert "\x00" not in error_text(ValueError(text)).encode().decode()


def test_error_text_is_bounded() -> None:
    """A message of a megabyte is cut to 16 kB, the marker included."""
    text = error_text(ValueError("é" * 1_000_000))

    assert ERROR_LIMIT - 2 <= len(text.encode()) <= ERROR_LIMIT
    assert text.endswith(" bytes cut]")


def test_traceback_text_tells_the_place_and_the_causes() -> None:
    """The traceback names this function and the chained error, but shows no locals."""
    password = "hunter" + "2"
    try:
        try:
            raise LookupError("first")
        except LookupError as error:
            raise ValueError("second") from error
    except ValueError as error:
        text = traceback_text(error)

    assert password
    assert "test_traceback_text_tells_the_place_and_the_causes" in text
    assert "LookupError: first" in text
    assert text.endswith("ValueError: second\n")
    assert password not in text


def test_traceback_text_keeps_both_ends() -> None:
    """A long traceback loses its middle: where it began and what failed remain."""
    text = traceback_text(_raised(ValueError("x" * 200_000 + "the end")))

    assert TRACEBACK_LIMIT - 8 <= len(text.encode()) <= TRACEBACK_LIMIT
    assert text.startswith("Traceback (most recent call last)")
    assert text.endswith("the end\n")
    assert " bytes cut] ..." in text


@given(texts)
def test_traceback_text_is_storable(text: str) -> None:
    """No message makes a traceback unrecordable."""
    traceback = traceback_text(_raised(ValueError(text)))

    assert b"\x00" not in traceback.encode()


def test_traceback_text_survives_unprintable_errors() -> None:
    """An error without a usable message still has a traceback."""
    text = traceback_text(_raised(UnprintableError()))

    assert "_raised" in text
    assert "UnprintableError" in text


def test_traceback_text_falls_back_to_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When formatting itself fails, the error's own text is recorded."""

    def fail(*args: object) -> NoReturn:
        raise RecursionError

    monkeypatch.setattr("traceback.format_exception", fail)

    assert traceback_text(ValueError("message")) == "ValueError: message"
