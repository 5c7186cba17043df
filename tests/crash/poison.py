"""An application whose jobs may kill its process: `sqla-jobs run ...poison:runner`."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_jobs import Arg, JobMixin, Runner, constant

MEGABYTE = 2**20


class Base(DeclarativeBase):
    """The application's own."""


class Job(JobMixin, Base):
    """The job system."""

    __tablename__ = "jobs"


class Effect(Base):
    """What a good job writes."""

    __tablename__ = "effects"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))


class Good(Job, kind="good", backoff=constant(timedelta(0))):
    """Works for a moment and writes an effect."""

    def run(self, ctx: Any) -> None:
        """Be there when a neighbour kills the process."""
        ctx.session.add(Effect(job_id=self.id))
        time.sleep(0.2)


class Killer(Job, kind="killer", backoff=constant(timedelta(0))):
    """Kills its process, every time."""

    how: Arg[str]

    def run(self, ctx: Any) -> None:
        """Let the neighbours start first."""
        time.sleep(0.1)
        crash() if self.how == "segv" else exhaust()


def crash() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def exhaust() -> NoReturn:
    """Take all the memory there is, and be killed as the system does it then."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 256 * MEGABYTE, most))
    taken = []
    try:
        while True:
            taken.append(bytearray(8 * MEGABYTE))
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)
        raise


def make_runner() -> Runner:
    """Return the runner of one process."""
    engine = create_engine(os.environ["DATABASE_URL"], pool_size=20)
    lease, poll = timedelta(seconds=3), timedelta(seconds=0.2)
    return Runner(sessionmaker(engine), Job, concurrency=10, lease=lease, poll=poll)
