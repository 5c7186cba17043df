"""A small application for a process of its own: `python app.py threads|aio ...`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_jobs import Arg, JobMixin, arg, constant
from sqla_jobs.handlers import Handler
from sqla_jobs.runner.aio import AsyncRunner
from sqla_jobs.runner.threads import Runner


class Base(DeclarativeBase):
    """The application's own."""


class Job(JobMixin, Base):
    """The job system."""

    __tablename__ = "jobs"


class Effect(Base):
    """What a job writes; twice would be seen."""

    __tablename__ = "effects"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    pid: Mapped[int]
    note: Mapped[str]


class Slices(Job, kind="slices", backoff=constant(timedelta(0))):
    """Writes one effect per slice, with a checkpoint after each."""

    count: Arg[int] = arg(default=3)
    seconds: Arg[float] = arg(default=0.0)


class Hangs(Job, kind="hangs", backoff=constant(timedelta(0))):
    """Writes an effect and never ends by itself."""


def say(word: str, job: Any) -> None:
    """Tell the test how far the process is."""
    # One write: lines of several threads must not mix.
    os.write(1, json.dumps([word, job.id]).encode() + b"\n")


def note(session: Any, job_id: int, text: str) -> None:
    """Write an effect."""
    session.add(Effect(job_id=job_id, pid=os.getpid(), note=text))


def slices(job: Any, ctx: Any) -> None:
    """Work in slices, in a thread."""
    job_id, count, seconds = job.id, job.count, job.seconds
    for number in range(ctx.state.get("next", 0), count):
        note(ctx.session, job_id, f"slice {number}")
        if number == count - 1:
            break
        ctx.checkpoint(next=number + 1)
        say("checkpoint", job)
        time.sleep(seconds)


async def async_slices(job: Any, ctx: Any) -> None:
    """Work in slices, in a task."""
    job_id, count, seconds = job.id, job.count, job.seconds
    for number in range(ctx.state.get("next", 0), count):
        note(ctx.session, job_id, f"slice {number}")
        if number == count - 1:
            break
        await ctx.checkpoint(next=number + 1)
        say("checkpoint", job)
        await asyncio.sleep(seconds)


def hangs(job: Any, ctx: Any) -> None:
    """Hang in a thread, deaf to everything."""
    note(ctx.session, job.id, "hung")
    ctx.session.flush()
    say("hangs", job)
    threading.Event().wait()


async def async_hangs(job: Any, ctx: Any) -> None:
    """Hang in a task."""
    note(ctx.session, job.id, "hung")
    await ctx.session.flush()
    say("hangs", job)
    await asyncio.Event().wait()


def main(dsn: str, shell: str, options: dict[str, Any]) -> None:
    """Run jobs until stopped by a signal."""
    aio = shell == "aio"
    handlers: list[tuple[Any, Any]] = [
        (Slices, async_slices if aio else slices),
        (Hangs, async_hangs if aio else hangs),
    ]
    for cls, handler in handlers:
        cls.__job_handler__ = Handler(handler, is_async=aio)
    given: dict[str, Any] = {"concurrency": options.get("concurrency", 10)}
    given |= {k: timedelta(seconds=options[k]) for k in ("lease", "poll", "grace")}
    if not aio:
        engine = create_engine(dsn, pool_size=30)
        Runner(sessionmaker(engine), Job, **given).run()
        engine.dispose()
        return

    async def run() -> None:
        engine = create_async_engine(dsn, pool_size=30)
        await AsyncRunner(async_sessionmaker(engine), Job, **given).run()
        await engine.dispose()

    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    print(json.dumps(["end", 0]), flush=True)
