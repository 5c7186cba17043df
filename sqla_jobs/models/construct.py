"""The constructor of a job: class defaults, arguments and columns become one row."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NoReturn

from sqlalchemy import inspect

from sqla_jobs._core.backoff import duration_problem
from sqla_jobs._core.options import problem_of, unknown
from sqla_jobs._core.payloads import check_json
from sqla_jobs._core.states import JobState
from sqla_jobs.errors import JobValueError
from sqla_jobs.models.arg import Arg, args_of, shown_payload
from sqla_jobs.models.columns import COLUMN_NAMES

Setter = Callable[[Any, str, Any], None]


class Plan:
    """What the constructor of one job class does; made once, at the first job."""

    def __init__(self, cls: type[Any]) -> None:
        given = cls.__job_options__
        self.is_root = cls.__jobs__.root is cls
        self.args = args_of(cls)
        self.row = {
            "queue": given.queue,
            "channel": "",
            "priority": given.priority,
            "state": JobState.AVAILABLE.value,
            "max_attempts": given.max_attempts,
            "backoff": given.backoff.spec(),
            "timeout": given.timeout,
            "lease": given.lease,
            "lease_token": 0,
        }
        if given.ordered:
            self.row["ordered"] = True
        self.setters = _setters(cls)
        self.defaults = [_default_of(one) for one in self.args.values()]
        self.factories = _dataclass_factories(cls)

    @cached_property
    def reads(self) -> list[tuple[str, Callable[[Any, int], Any]]]:
        """What checks the stored value of each argument; it raises for a bad one."""
        return [(name, one.codec.read) for name, one in self.args.items()]


def plan_of(cls: type[Any]) -> Plan:
    """Return the plan of a mapped job class."""
    plan = cls.__dict__.get("__job_plan__")
    if plan is None:
        plan = cls.__job_plan__ = Plan(cls)
    return plan


def construct(job: Any, values: dict[str, Any]) -> None:
    """
    Fill a new job.

    Raises:
        TypeError: If a keyword is unknown or an argument is missing.
        JobValueError: If a value cannot be used.
        PayloadError: If an argument is of the wrong type.
    """
    plan = plan_of(type(job))
    # One that has a kind already is a job that is done elsewhere.
    if plan.is_root and job.__dict__.get("kind") is None:
        raise TypeError(
            f"{type(job).__name__} makes the job table but is no kind of job; construct"
            " a subclass of it"
        )
    # Straight into the instance: an INSERT takes what is there, and events for a dozen
    # defaults would cost more than the rest of the constructor.
    row = job.__dict__
    row.update(plan.row)
    payload = row["payload"] = _initial_payload(type(job), values)
    for name, value in values.items():
        one = plan.args.get(name)
        if one is not None:
            payload[name] = one.encode(value)
        elif name != "payload":
            _setter(job, plan, name)(job, name, value)
    for name, default in plan.defaults:
        if name not in payload:
            payload[name] = default() if default else _missing(job, plan, payload)
    for name, factory in plan.factories.items():
        if name not in values:
            setattr(job, name, factory())
    if values.get("on_conflict") is not None:
        _check_conflict(job)


def _initial_payload(cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    payload = values.get("payload")
    if payload is None:
        return {}
    if not isinstance(payload, dict):
        raise JobValueError(
            f"payload={shown_payload(cls, payload)} must be a dict; for bytes use"
            " payload_bytes"
        )
    return dict(payload)


def _default_of(one: Arg[Any]) -> tuple[str, Callable[[], Any] | None]:
    if one.required:
        return one.name, None
    if one.default_factory is not None:
        return one.name, one.encoded_default
    encoded = one.encoded_default()
    if isinstance(encoded, list | dict):
        return one.name, lambda: deepcopy(encoded)
    return one.name, lambda: encoded


def _missing(job: Any, plan: Plan, payload: dict[str, Any]) -> NoReturn:
    names = [n for n, default in plan.defaults if default is None and n not in payload]
    listed = " and ".join(repr(name) for name in names)
    plural = "s" if len(names) > 1 else ""
    raise TypeError(
        f"{type(job).__name__}() missing {len(names)} required keyword"
        f" argument{plural}: {listed}"
    )


def _setter(job: Any, plan: Plan, name: str) -> Setter:
    setter = plan.setters.get(name)
    if setter is None:
        cls = type(job).__name__
        if name in COLUMN_NAMES:
            raise TypeError(f"{cls}() takes no {name!r}: the library writes it")
        known = (*plan.setters, *plan.args, "payload")
        raise TypeError(f"{cls}(): {unknown('keyword argument', name, known)}")
    return setter


def _setters(cls: type[Any]) -> dict[str, Setter]:
    mapper = inspect(cls)
    own = set(mapper.all_orm_descriptors.keys()) - COLUMN_NAMES
    if is_dataclass(cls):
        own |= {field.name for field in fields(cls)} - COLUMN_NAMES
    return dict.fromkeys(own, setattr) | _SETTERS


def _dataclass_factories(cls: type[Any]) -> dict[str, Callable[[], Any]]:
    # The mixin's constructor replaces the one that dataclasses would generate.
    if not is_dataclass(cls):
        return {}
    return {
        field.name: field.default_factory
        for field in fields(cls)
        if field.default_factory is not MISSING and field.name not in COLUMN_NAMES
    }


def _set_option(job: Any, name: str, value: Any) -> None:
    problem = problem_of(name, value)
    if problem:
        raise JobValueError(f"{type(job).__name__}({name}={value!r}) {problem}")
    setattr(job, name, value)


def _set_backoff(job: Any, name: str, value: Any) -> None:
    problem = problem_of(name, value)
    own = type(job).__job_options__.backoff
    if problem is None and value.shape == "custom" and value != own:
        problem = "has a function, which a row cannot hold; set it on the class"
    if problem:
        raise JobValueError(f"{type(job).__name__}(backoff={value!r}) {problem}")
    job.backoff = value.spec()


def _set_run_at(job: Any, _: str, value: Any) -> None:
    if value is None:
        return
    check_time(f"{type(job).__name__}(run_at={value!r})", value)
    if job._delay is not None:
        _raise_both(job)
    job.run_at = value
    _set_waiting(job)


def _set_delay(job: Any, _: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, timedelta) or value < timedelta(0):
        raise JobValueError(
            f"{type(job).__name__}(delay={value!r}) must be a timedelta of zero or more"
        )
    if "run_at" in job.__dict__ and value:
        _raise_both(job)
    if value:
        # The database's clock is read at the flush.
        job._delay = value
        _set_waiting(job)


def _set_hold(job: Any, _: str, value: Any) -> None:
    if value is None:
        return
    problem = duration_problem(value)
    if problem is None and not value:
        problem = "must be above zero"
    if problem:
        raise JobValueError(f"{type(job).__name__}(hold_for={value!r}) {problem}")
    # As for a delay: held_until comes at the flush.
    job._hold_for, job.state = value, JobState.HELD.value


def _set_text(job: Any, name: str, value: Any) -> None:
    if value is not None:
        _set_option(job, name, value)


def _set_conflict(job: Any, name: str, value: Any) -> None:
    if value is None:
        return
    if problem := problem_of(name, value):
        raise JobValueError(f"{type(job).__name__}({name}={value!r}) {problem}")
    job._on_conflict = value


def _check_conflict(job: Any) -> None:
    if job.__dict__.get("unique_key") is None and not type(job).__job_options__.unique:
        cls = type(job).__name__
        raise JobValueError(
            f"{cls}(on_conflict={job._on_conflict!r}) needs a unique_key, or unique= on"
            " the class"
        )


def _set_waiting(job: Any) -> None:
    # A held job gets to know whether it is due when it is confirmed.
    if job._hold_for is None:
        job.state = JobState.SCHEDULED.value


def _raise_both(job: Any) -> NoReturn:
    raise JobValueError(f"{type(job).__name__}() takes run_at= or delay=, not both")


def _set_tags(job: Any, _: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list | tuple) or {*map(type, value)} - {str}:
        cls = type(job).__name__
        raise JobValueError(f"{cls}(tags={value!r}) must be a list of str")
    _set_json(job, "tags", list(value))


def _set_json(job: Any, name: str, value: Any) -> None:
    check_json(value, f"{type(job).__name__}.{name}")
    setattr(job, name, value)


def check_time(what: str, value: Any) -> None:
    """
    Check a point in time.

    Raises:
        JobValueError: If it is no datetime, or has no time zone.
    """
    if not isinstance(value, datetime):
        raise JobValueError(f"{what} must be a datetime")
    if value.utcoffset() is None:
        raise JobValueError(
            f"{what} is naive; give it a time zone, e.g. tzinfo=timezone.utc"
        )


_SETTERS: dict[str, Setter] = {
    "queue": _set_option,
    "channel": _set_option,
    "priority": _set_option,
    "max_attempts": _set_option,
    "timeout": _set_option,
    "lease": _set_option,
    "backoff": _set_backoff,
    "run_at": _set_run_at,
    "delay": _set_delay,
    "hold_for": _set_hold,
    "ordered": _set_option,
    "unique_key": _set_text,
    "fingerprint": _set_text,
    "on_conflict": _set_conflict,
    "tags": _set_tags,
    "payload_bytes": setattr,
    "meta": _set_json,
}
