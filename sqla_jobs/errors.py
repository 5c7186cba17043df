"""Every exception of sqla_jobs; this module imports nothing of it."""

from __future__ import annotations

from dataclasses import dataclass

_MOST_AROUND = 1_000  # characters before and after what is cut


class SqlaJobsError(Exception):
    """The base class of the ordinary errors of this library."""


class JobDefinitionError(SqlaJobsError, TypeError):
    """A job class, a handler or a class keyword is declared wrongly."""


class JobValueError(SqlaJobsError, ValueError):
    """
    A value given to a job, a runner or a verb cannot be used.

    A long message, which has a long value in it, loses its middle.
    """

    def __init__(self, message: str = "") -> None:
        cut = len(message) - 2 * _MOST_AROUND
        if cut > _MOST_AROUND:
            head, tail = message[:_MOST_AROUND], message[-_MOST_AROUND:]
            message = f"{head}... [{cut} characters cut] ...{tail}"
        super().__init__(message)


class PayloadError(JobValueError):
    """
    A payload value cannot be stored or no longer decodes.

    The message shows a part of the value, `hidden` does not: that one is what rows and
    logs get.
    """

    hidden: str | None = None

    def within(self, where: str) -> PayloadError:
        """Return the same error about a part of *where*."""
        found = PayloadError(f"{where}: {self}")
        found.hidden = f"{where}: {self.hidden or self}"
        return found


class JobNotFound(JobValueError, LookupError):
    """There is no job with this id, or no longer."""


class UnsupportedDialect(SqlaJobsError):
    """The engine's database is not one that sqla_jobs supports."""


@dataclass(frozen=True)
class Difference:
    """
    One difference between the job tables in the code and in the database.

    Args:
        table: The table's name, with its schema if it has one.
        text: What differs: what the code says, and what the database has.
        blocking: Whether a runner refuses to start because of it.
        ahead: Whether the database has what the code does not know; default no, it
            is behind.
    """

    table: str
    text: str
    blocking: bool
    ahead: bool = False

    def __str__(self) -> str:
        return f"{self.table}: {self.text}"


class SchemaMismatch(SqlaJobsError):
    """The job tables in the database differ from the code: see `differences`."""

    def __init__(self, message: str, differences: tuple[Difference, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences

    def __reduce__(self) -> tuple[type[SchemaMismatch], tuple[object, ...]]:
        return type(self), (*self.args, self.differences)


class MissingTables(SchemaMismatch):
    """The database lacks tables of the job system."""


class PostgresServerError(SqlaJobsError, RuntimeError):
    """A `sqla_jobs.testing.PostgresServer` cannot be found, started or used."""


class DuplicateJob(SqlaJobsError):
    """
    A live job already holds the unique key.

    Args:
        unique_key: The key.
        job_id: The live job's id; None if it is a new one without an id yet.
    """

    def __init__(
        self, message: str, unique_key: str | None = None, job_id: int | None = None
    ) -> None:
        super().__init__(message)
        self.unique_key, self.job_id = unique_key, job_id

    def __reduce__(self) -> tuple[type[DuplicateJob], tuple[object, ...]]:
        return type(self), (*self.args, self.unique_key, self.job_id)


class HoldExpired(SqlaJobsError):
    """
    A job is not held any more: expired, aborted, confirmed already, or unknown.

    Args:
        job_id: The first such job.
        state: Its state; None if it is unknown.
        reason: Why it ended, as the row says.
    """

    def __init__(
        self,
        message: str,
        job_id: int,
        state: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.job_id, self.state, self.reason = job_id, state, reason

    def __reduce__(
        self,
    ) -> tuple[type[HoldExpired], tuple[str, int, str | None, str | None]]:
        return type(self), (str(self), self.job_id, self.state, self.reason)


class LeaseLost(SqlaJobsError):
    """The attempt no longer holds the job; whatever it wrote is rolled back."""

    def __init__(self, job_id: int, attempt: int) -> None:
        super().__init__(
            f"job {job_id}: attempt {attempt} no longer holds the lease;"
            " its writes were rolled back"
        )
        self.job_id, self.attempt = job_id, attempt

    def __reduce__(self) -> tuple[type[LeaseLost], tuple[int, int]]:
        return type(self), (self.job_id, self.attempt)


class AttemptInterrupted(BaseException):
    """
    The running attempt must end now: lease lost, cancelled, timed out or shutdown.

    A `BaseException`, so that a handler's ``except Exception`` cannot hide it.
    """

    def __init__(self, job_id: int, reason: str) -> None:
        super().__init__(f"job {job_id}: attempt interrupted: {reason}")
        self.job_id, self.reason = job_id, reason

    def __reduce__(self) -> tuple[type[AttemptInterrupted], tuple[int, str]]:
        return type(self), (self.job_id, self.reason)
