"""What a job class declares by its keywords; values are checked when they are built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from sqla_jobs._core.backoff import DEFAULT_BACKOFF, Backoff
from sqla_jobs.errors import JobDefinitionError, JobValueError

MIN_LEASE = timedelta(seconds=3)
"""The shortest lease: renewed every third of it, a shorter one loses to a slow disk."""

MAX_NAME_BYTES = 200
"""The longest name of a queue, channel or kind, in bytes of UTF-8."""

RAW_KIND = "raw"
"""The kind of jobs that no class is for: they are done outside of Python."""

CONFLICT_POLICIES = ("raise", "skip", "replace", "return")
"""What an enqueue may do when a live job has the same unique key."""

SMALLINT = range(-32768, 32768)
INTEGER = range(1, 2**31)


@dataclass(frozen=True, slots=True)
class Retention:
    """
    How long final jobs are kept; None keeps them for ever.

    Args:
        completed: Default 1 day.
        cancelled: Default 7 days.
        discarded: The dead letters; default None.
        archive: Whether old jobs move to the archive table instead of being deleted;
            default False.

    Raises:
        JobValueError: If a duration is negative or no timedelta.
    """

    completed: timedelta | None = timedelta(days=1)
    cancelled: timedelta | None = timedelta(days=7)
    discarded: timedelta | None = None
    archive: bool = False

    def __post_init__(self) -> None:
        for name in ("completed", "cancelled", "discarded"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, timedelta) or value < timedelta(0):
                raise JobValueError(
                    f"Retention({name}={value!r}) must be a timedelta of zero or more,"
                    " or None to keep such jobs for ever"
                )


@dataclass(frozen=True, slots=True)
class ClassOptions:
    """
    The merged keywords of a job class.

    Args:
        kind: The stable name in the rows; default the class name in snake case.
        aliases: Older kinds whose rows load as this class.
        queue: Default "default".
        priority: Higher runs first, -32768 to 32767; default 0.
        max_attempts: Executions in total, 1 or more; default 10.
        backoff: Default exponential from 1 s, at most 17 minutes.
        timeout: The longest attempt; default None, no limit.
        lease: 3 s or more; default None, the runner's.
        retention: How long final jobs are kept.
        load: Relationships to load when a runner hands the job to its handler.
        ordered: Whether jobs run one at a time in send order, in each queue and
            channel; default False.
        unique: What the unique key is made of: ``"args"``, ``"queue"``,
            ``"channel"``, and names of arguments or columns; default nothing.
        on_conflict: What an enqueue does when a live job has the same unique key:
            ``"raise"``, ``"skip"``, ``"replace"`` or ``"return"``; default "raise".
        batch: Most jobs that ``run_many`` gets at once, 1 or more; default 100.
        notify: Of a root class only: whether commits that enqueue jobs NOTIFY the
            runners, and these listen; default True.
    """

    kind: str | None = None
    aliases: tuple[str, ...] = ()
    queue: str = "default"
    priority: int = 0
    max_attempts: int = 10
    backoff: Backoff = DEFAULT_BACKOFF
    timeout: timedelta | None = None
    lease: timedelta | None = None
    retention: Retention = field(default_factory=Retention)
    load: tuple[str, ...] = ()
    ordered: bool = False
    unique: tuple[str, ...] = ()
    on_conflict: str = "raise"
    batch: int = 100
    notify: bool = True


DEFAULTS = ClassOptions()
"""What holds where a class says nothing."""

KEYWORDS = frozenset(f.name for f in fields(ClassOptions))
"""The class keywords."""


def merged(name: str, given: Iterable[Mapping[str, Any]]) -> ClassOptions:
    """
    Return the options of class *name* from keywords given along its MRO.

    Args:
        name: The class's name, which its default kind is made of.
        given: Checked keywords, the class's own first; no kind is inherited.
    """
    own, *inherited = given
    values: dict[str, Any] = {}
    for keywords in reversed(inherited):
        values.update(keywords)
    values.pop("kind", None)
    values.pop("aliases", None)
    values.update(own)
    values.setdefault("kind", snake_case(name))
    return replace(DEFAULTS, **values)


def snake_case(name: str) -> str:
    """Return ``SendHTTPInvoice`` as ``send_http_invoice``."""
    out = ""
    for i, char in enumerate(name):
        starts = char.isupper() and i > 0 and name[i - 1] != "_"
        after_lower = starts and not name[i - 1].isupper()
        before_lower = starts and name[i + 1 : i + 2].islower()
        out += "_" + char.lower() if after_lower or before_lower else char.lower()
    return out


def checked(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the class keywords of class *name*, checked and normalized.

    Raises:
        JobDefinitionError: If a keyword is unknown or its value cannot be used.
    """
    return {key: _checked_one(name, key, value) for key, value in given.items()}


def unknown(what: str, key: str, known: Iterable[str]) -> str:
    """Return the text of an error about an unknown *key*, with the likely meaning."""
    near = get_close_matches(key, sorted(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {key!r}{hint}"


def _checked_one(name: str, key: str, value: Any) -> Any:
    if key not in KEYWORDS:
        text = unknown("class keyword", key, KEYWORDS)
        raise JobDefinitionError(f"{name}: {text}")
    if key == "aliases":
        return _aliases(name, value)
    if key == "retention" and isinstance(value, timedelta):
        value = Retention(completed=value)
    if key == "load":
        return _names_to_load(name, value)
    if key == "unique":
        value = (value,) if isinstance(value, str) else tuple(value)
    problem = problem_of(key, value)
    if problem:
        raise JobDefinitionError(f"{name}: {key}={value!r} {problem}")
    return value


def _aliases(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    values = tuple(value) if isinstance(value, Iterable) else (value,)
    for alias in values:
        if problem := problem_of("kind", alias):
            raise JobDefinitionError(f"{name}: alias {alias!r} {problem}")
    return values


def _names_to_load(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = (value,)
    # A relationship is still a bare attribute here; its name comes with the mapping.
    names = tuple(getattr(v, "key", v) for v in value)
    for one in names:
        if not isinstance(one, str):
            raise JobDefinitionError(
                f"{name}: load={one!r} must name a relationship, e.g. load='invoice'"
            )
    return names


def problem_of(key: str, value: Any) -> str | None:
    """Return what is wrong with the value of an option, None if nothing is."""
    check = _CHECKS.get(key)
    return None if check is None else check(value)


def _name_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if not value:
        return "must not be empty"
    return _text_problem(value)


def _text_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is no text"
    if "\0" in value:
        return "holds a NUL character, which no database text can"
    if size > MAX_NAME_BYTES:
        return f"is {size} bytes long; at most {MAX_NAME_BYTES}"
    return None


def _priority_problem(value: Any) -> str | None:
    if type(value) is not int or value not in SMALLINT:
        return "must be an integer from -32768 to 32767"
    return None


def _attempts_problem(value: Any) -> str | None:
    if type(value) is not int or value not in INTEGER:
        return "must be an integer of 1 or more"
    return None


def _timeout_problem(value: Any) -> str | None:
    if value is None or (isinstance(value, timedelta) and value > timedelta(0)):
        return None
    return "must be a timedelta above zero, or None for no limit"


def _lease_problem(value: Any) -> str | None:
    if value is None or (isinstance(value, timedelta) and value >= MIN_LEASE):
        return None
    return "must be a timedelta of 3 s or more, or None for the runner's"


def _backoff_problem(value: Any) -> str | None:
    if isinstance(value, Backoff):
        return None
    return "must be a backoff, e.g. exponential() or constant(timedelta(seconds=5))"


def _retention_problem(value: Any) -> str | None:
    if isinstance(value, Retention):
        return None
    return "must be a Retention, or a timedelta for completed jobs"


def _switch_problem(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


def _unique_problem(value: Any) -> str | None:
    if value and all(isinstance(one, str) and one for one in value):
        return None
    return "must name what makes a job unique, e.g. unique=('args',)"


def _conflict_problem(value: Any) -> str | None:
    if value in CONFLICT_POLICIES:
        return None
    return f"must be one of {', '.join(map(repr, CONFLICT_POLICIES))}"


_CHECKS = {
    "kind": _name_problem,
    "queue": _name_problem,
    "channel": _text_problem,
    "priority": _priority_problem,
    "max_attempts": _attempts_problem,
    "timeout": _timeout_problem,
    "lease": _lease_problem,
    "backoff": _backoff_problem,
    "retention": _retention_problem,
    "ordered": _switch_problem,
    "unique": _unique_problem,
    "unique_key": _name_problem,
    "fingerprint": _name_problem,
    "on_conflict": _conflict_problem,
    "batch": _attempts_problem,
    "notify": _switch_problem,
}
