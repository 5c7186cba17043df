"""`JobMixin`: makes a class of the application's own Base a job system."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from sqlalchemy import event, inspect
from sqlalchemy.orm import Mapped
from typing_extensions import dataclass_transform

from sqla_jobs._core.backoff import Backoff
from sqla_jobs._core.options import ClassOptions
from sqla_jobs.models import define
from sqla_jobs.models.arg import arg
from sqla_jobs.models.construct import construct
from sqla_jobs.models.inspect import JobTables
from sqla_jobs.models.kinds import JobMapper
from sqla_jobs.models.support import (
    ArchiveRow,
    AttemptRow,
    IdempotencyRow,
    QueueRow,
    RunnerRow,
)

if TYPE_CHECKING:
    from sqlalchemy.orm.decl_api import DCTransformDeclarative

    def _opt(*, default: Any = ..., init: bool = True, alias: str = "") -> Any: ...

    # Derived from the metaclass of SQLAlchemy's bases, so that the checkers see no
    # conflict; on a parent class pyright would lose kw_only on dataclass bases.
    @dataclass_transform(kw_only_default=True, field_specifiers=(arg, _opt))
    class _Typed(DCTransformDeclarative): ...
else:
    _Typed = type


class JobMixin(metaclass=_Typed):
    """
    Makes the first class of a hierarchy a job table, its subclasses kinds of jobs.

    The constructor of a job takes each `Arg`, its mapped attributes, and:

    Args:
        queue: Default the class's.
        channel: The key for ordering and fairness inside the queue; default "".
        priority: Higher runs first, -32768 to 32767; default the class's.
        run_at: An aware datetime; not before it. Default at once.
        delay: The same, counted from the flush by the database's clock.
        ordered: Whether the job waits for the earlier ordered ones of its queue and
            channel; *priority* does not matter to it then. Default the class's.
        hold_for: Keeps the job from running until `confirm_hold`; it is cancelled when
            this time, counted from the flush, is over. Default not held.
        unique_key: At most one live job of the table has it; up to 200 bytes. Default
            what ``unique=`` of the class computes, else none.
        on_conflict: What happens when a live job has that key: ``"raise"``,
            ``"skip"``, ``"replace"`` or ``"return"``; default the class's.
        fingerprint: A tag that many jobs may share, to find and cancel them by; up to
            200 bytes.
        max_attempts: Executions in total, 1 or more; default the class's.
        backoff: A preset, e.g. ``constant(timedelta(seconds=5))``; default the class's.
        timeout: The longest attempt; default the class's.
        lease: 3 s or more; default the class's, else the runner's.
        tags: Strings for filters in queries.
        payload: JSON beside each `Arg`; a dict.
        payload_bytes: Whatever JSON does not hold.
        meta: JSON that travels with the job, such as a trace context.

    Raises:
        TypeError: If a keyword is unknown or an `Arg` without default is missing.
        JobValueError: If a value cannot be used.
        PayloadError: If an `Arg` is of the wrong type.
    """

    if TYPE_CHECKING:
        # The columns themselves are in columns.py.
        id: Mapped[int] = _opt(init=False)
        kind: Mapped[str] = _opt(init=False)
        queue: Mapped[str] = _opt(default=None)
        channel: Mapped[str] = _opt(default=None)
        priority: Mapped[int] = _opt(default=None)
        lane: Mapped[int] = _opt(init=False)
        state: Mapped[str] = _opt(init=False)
        run_at: Mapped[datetime] = _opt(default=None)
        attempt: Mapped[int] = _opt(init=False)
        max_attempts: Mapped[int] = _opt(default=None)
        backoff: Mapped[str] = _opt(init=False)
        timeout: Mapped[timedelta | None] = _opt(default=None)
        lease: Mapped[timedelta | None] = _opt(default=None)
        # Keywords of the constructor that are no attributes of that type.
        _backoff: Backoff = _opt(default=None, alias="backoff")
        _delay: timedelta | None = _opt(default=None, alias="delay")
        snoozes: Mapped[int] = _opt(init=False)
        crashes: Mapped[int] = _opt(init=False)
        lease_token: Mapped[int] = _opt(init=False)
        leased_until: Mapped[datetime | None] = _opt(init=False)
        runner_id: Mapped[UUID | None] = _opt(init=False)
        payload: Mapped[dict[str, Any]] = _opt(default=None)
        payload_bytes: Mapped[bytes | None] = _opt(default=None)
        checkpoint: Mapped[Any] = _opt(init=False)
        result: Mapped[Any] = _opt(init=False)
        progress: Mapped[Any] = _opt(init=False)
        unique_key: Mapped[str | None] = _opt(default=None)
        fingerprint: Mapped[str | None] = _opt(default=None)
        ordered: Mapped[bool] = _opt(default=None)
        _hold_for: timedelta | None = _opt(default=None, alias="hold_for")
        _on_conflict: str | None = _opt(default=None, alias="on_conflict")
        held_until: Mapped[datetime | None] = _opt(init=False)
        cancel_requested_at: Mapped[datetime | None] = _opt(init=False)
        reason: Mapped[str | None] = _opt(init=False)
        last_error: Mapped[str | None] = _opt(init=False)
        tags: Mapped[list[str] | None] = _opt(default=None)
        meta: Mapped[dict[str, Any] | None] = _opt(default=None)
        created_at: Mapped[datetime] = _opt(init=False)
        started_at: Mapped[datetime | None] = _opt(init=False)
        finished_at: Mapped[datetime | None] = _opt(init=False)

        Attempt: ClassVar[type[AttemptRow]]
        Queue: ClassVar[type[QueueRow]]
        Runner: ClassVar[type[RunnerRow]]
        Idempotency: ClassVar[type[IdempotencyRow]]
        Archived: ClassVar[type[ArchiveRow]]
        _duplicate_of: ClassVar[Any]
        __jobs__: ClassVar[JobTables]
        __job_options__: ClassVar[ClassOptions]
    else:
        _delay = _hold_for = _on_conflict = _duplicate_of = None

        # A dataclass base compares its fields, which makes objects unhashable.
        __eq__ = object.__eq__
        __hash__ = object.__hash__

        def __init__(self, **values: Any) -> None:
            construct(self, values)

    __mapper_cls__: ClassVar[type[Any]] = JobMapper
    __payload_limit__: ClassVar[int] = 1_000_000

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**define.prepare(cls, keywords))

    @property
    def duplicate_of(self) -> int | None:
        """
        The id of the live job that the flush found in place of this new one.

        None if there was none, so that this one was inserted.
        """
        other: Any = self._duplicate_of
        if isinstance(other, JobMixin):  # of the same flush
            identity = inspect(other).identity
            return None if identity is None else int(identity[0])
        return other  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        # Only what is loaded: a repr in a log must not run SQL, nor show payloads.
        row = self.__dict__
        shown = [f"{name}={row[name]}" for name in ("id", "state") if name in row]
        shown += [f"queue={row['queue']!r}"] if "queue" in row else []
        return f"<{' '.join([type(self).__name__, *shown])}>"


event.listen(JobMixin, "after_mapper_constructed", define.finish, propagate=True)
