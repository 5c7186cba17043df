"""What a job must hold when it is flushed, and when it is handed to its handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ClauseElement, inspect

from sqla_jobs._core.options import problem_of
from sqla_jobs._core.payloads import check_json
from sqla_jobs.errors import JobValueError
from sqla_jobs.models.arg import dump_payload, shown_payload
from sqla_jobs.models.construct import check_time, plan_of

_OPTIONS = ("queue", "channel", "priority", "max_attempts", "timeout", "lease")


def validate(job: Any) -> None:
    """
    Check a new or changed job before its flush; what is not loaded is not looked at.

    Raises:
        JobValueError: If a required column is NULL, or a limit or a time is unusable.
        PayloadError: If `payload` is no JSON, or above the class's `__payload_limit__`.
    """
    row = job.__dict__
    cls = type(job)
    defaults = plan_of(cls).row
    for name in _OPTIONS:
        value = row.get(name, defaults[name])
        if value is not defaults[name]:
            _check_option(cls, name, value)
    for name in ("unique_key", "fingerprint"):
        if row.get(name) is not None:
            _check_option(cls, name, row[name])
    ordered = row.get("ordered", False)
    if ordered is not True and ordered is not False:
        _check_option(cls, "ordered", ordered)
    run_at = row.get("run_at")
    if run_at is not None and not isinstance(run_at, ClauseElement):
        check_time(f"{cls.__name__}.run_at = {run_at!r}", run_at)
    _check_payload(cls, row)
    _check_others(cls, row)
    for name in cls.__job_required__:
        if row.get(name) is None:
            _check_required(job, name)


def decode_payload(job: Any) -> None:
    """
    Check that every argument of *job* decodes.

    Raises:
        PayloadError: If one does not; names the job, the argument and the problem.
    """
    payload = job.__dict__.get("payload")
    for name, read in plan_of(type(job)).reads:
        if not _decodes(payload, name, read):
            getattr(job, name)  # it has a default, or says what is wrong


def _decodes(payload: Any, name: str, read: Callable[[Any, int], Any]) -> bool:
    # Apart, so that its error, which shows the value, is no part of any traceback.
    try:
        read(payload[name], 0)
    except Exception:  # noqa: BLE001 - whatever it is, the attribute says it
        return False
    return True


def _check_option(cls: type[Any], name: str, value: Any) -> None:
    if isinstance(value, ClauseElement):
        return
    if problem := problem_of(name, value):
        raise JobValueError(f"{cls.__name__}.{name} = {value!r} {problem}")


def _check_payload(cls: type[Any], row: dict[str, Any]) -> None:
    if "payload" not in row:
        return
    payload = row["payload"]
    if type(payload) is dict:
        if payload:
            dump_payload(cls, payload, f"{cls.__name__}.payload")
    elif not isinstance(payload, ClauseElement):
        raise JobValueError(
            f"{cls.__name__}.payload = {shown_payload(cls, payload)} must be a dict;"
            " for bytes use payload_bytes"
        )


def _check_others(cls: type[Any], row: dict[str, Any]) -> None:
    for name in ("tags", "meta"):
        value = row.get(name)
        if value is not None and not isinstance(value, ClauseElement):
            check_json(value, f"{cls.__name__}.{name}")


def _check_required(job: Any, name: str) -> None:
    if name not in job.__dict__ and inspect(job).persistent:
        return  # not loaded, so not changed
    if any(job.__dict__.get(key) is not None for key in _sources(type(job), name)):
        return
    cls = type(job).__name__
    raise JobValueError(
        f"{cls}.{name} is None, but {cls} requires it; set it, or declare it"
        f" {name}: Mapped[... | None]"
    )


def _sources(cls: type[Any], name: str) -> list[str]:
    """Return the relationships that fill the foreign key *name* during the flush."""
    mapper = inspect(cls)
    column = mapper.columns[name]
    return [one.key for one in mapper.relationships if column in one.local_columns]
