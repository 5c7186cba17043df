"""Every exception of sqla_jobs; this module imports nothing."""

from __future__ import annotations


class SqlaJobsError(Exception):
    """The base class of the ordinary errors of this library."""


class JobDefinitionError(SqlaJobsError, TypeError):
    """A job class, a handler or a class keyword is declared wrongly."""


class JobValueError(SqlaJobsError, ValueError):
    """A value given to a job, a runner or a verb cannot be used."""


class PayloadError(JobValueError):
    """A payload value cannot be stored or no longer decodes."""


class UnsupportedDialect(SqlaJobsError):
    """The engine's database is not one that sqla_jobs supports."""


class MissingTables(SqlaJobsError):
    """The database lacks tables of the job system."""


class PostgresServerError(SqlaJobsError, RuntimeError):
    """A `sqla_jobs.testing.PostgresServer` cannot be found, started or used."""


class DuplicateJob(SqlaJobsError):
    """A live job already holds the unique key."""


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
