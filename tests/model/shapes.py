"""The application of the model: two kinds of jobs, and a row per effect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_jobs import Arg, JobMixin, Retention, arg, constant, exponential

START = datetime(2050, 6, 1, 12, tzinfo=UTC)
"""Where the clock of each example begins; jobs without a time are due long before."""

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
LEASE = timedelta(seconds=30)
OWN_LEASE = timedelta(seconds=90)
"""The lease of jobs that state one."""

ZERO = timedelta(0)
QUEUES = ("mail", "web")
CHANNELS = ("", "x", "y")
KEYS = ("a", "b")
DELAYS = (ZERO, 5 * SECOND, 20 * SECOND)
WAITS = st.sampled_from([None, *DELAYS])

KEPT = {"completed": HOUR, "cancelled": 2 * HOUR}
"""How long final jobs stay; the dead letters for ever."""


class Base(DeclarativeBase):
    """The application's base."""


class Job(JobMixin, Base):
    """The root class."""

    __tablename__ = "model_jobs"
    number: Arg[int] = arg(default=0)


class Alpha(
    Job,
    kind="alpha",
    max_attempts=2,
    backoff=constant(10 * SECOND),
    retention=Retention(**KEPT),
):
    """Has few attempts, and always the same wait between them."""


class Beta(
    Job,
    kind="beta",
    max_attempts=3,
    backoff=exponential(base=SECOND, jitter=0),
    retention=Retention(**KEPT, archive=True),
):
    """Has more attempts, waits that grow, and an archive."""


KINDS: dict[str, type[Job]] = {"alpha": Alpha, "beta": Beta}


class Effect(Base):
    """What a holder writes beside each use of its claim."""

    __tablename__ = "model_effects"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
