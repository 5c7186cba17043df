"""One worker of the bank: `python -m tests.chaos.worker OPTIONS`, as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from sqla_jobs import AsyncRunner, Runner
from tests.chaos.app import Job, Surroundings, register

ASYNC = ("asyncpg", "psycopg_async")
POOLER = "CHAOS_POOLER"
"""In the environment: the DSN leads to PgBouncer in transaction mode."""
UNFENCED = "CHAOS_WITHOUT_FENCE"
"""In the environment: stale holders may write, so that the checker has to see it."""


@dataclass(frozen=True)
class Options:
    """What the scene tells a worker."""

    dsn: str
    driver: str
    name: str
    ledger: str
    seed: str
    lease: float
    poll: float
    grace: float
    concurrency: int


def say(word: str, *values: Any) -> None:
    """Tell the referee; one write, so that lines of several threads do not mix."""
    os.write(1, json.dumps([word, *values]).encode() + b"\n")


class OneLine(logging.Formatter):
    """Writes each record as one line of JSON, its traceback inside."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        trace = self.formatException(record.exc_info) if record.exc_info else None
        kind = record.exc_info[0].__name__ if trace and record.exc_info[0] else None  # type: ignore[index]
        fields = {"level": record.levelname, "text": record.getMessage()}
        return json.dumps(fields | {"raised": kind, "trace": trace})


def around(job: Any, ctx: Any, call_next: Any) -> Any:
    """Tell the referee when an attempt starts and how it ends."""
    facts = (job.id, job.lease_token)
    say("start", *facts, ctx.attempt, job.kind)
    try:
        value = call_next()
    except BaseException as exc:
        say("end", *facts, type(exc).__name__)
        raise
    say("end", *facts, "returned")
    return value


async def async_around(job: Any, ctx: Any, call_next: Any) -> Any:
    """Do the same for async handlers."""
    facts = (job.id, job.lease_token)
    say("start", *facts, ctx.attempt, job.kind)
    try:
        value = await call_next()
    except BaseException as exc:
        say("end", *facts, type(exc).__name__)
        raise
    say("end", *facts, "returned")
    return value


def engine_options(options: Options) -> dict[str, Any]:
    """Return what the engine needs on the way to the server."""
    if POOLER not in os.environ:
        return {"pool_size": options.concurrency}
    if options.driver == "asyncpg":
        return {
            "poolclass": NullPool,
            "connect_args": {
                "statement_cache_size": 0,
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"s_{uuid4().hex}",
            },
        }
    if options.driver == "psycopg2":
        return {"poolclass": NullPool}
    return {"poolclass": NullPool, "connect_args": {"prepare_threshold": None}}


def runner_options(options: Options) -> dict[str, Any]:
    """Return what both kinds of runners are made with."""
    surroundings = Surroundings(options.name, options.ledger, options.seed, say)
    return {
        "name": options.name,
        "concurrency": options.concurrency,
        "lease": timedelta(seconds=options.lease),
        "poll": timedelta(seconds=options.poll),
        "grace": timedelta(seconds=options.grace),
        "listen": POOLER not in os.environ,
        "resources": surroundings,
        "middleware": [async_around if options.driver in ASYNC else around],
        # Each kill is a crash of all that a worker held: none of them is poison.
        "max_crashes": 100_000,
    }


def remove_fence() -> None:
    """Let attempts write that hold no lease any more."""
    from sqlalchemy import Connection

    from sqla_jobs._core.states import JobState
    from sqla_jobs.runner.attempt import Attempt, Interruption

    fenced, interrupt = Attempt._fence, Attempt.interrupt

    def unfenced(
        self: Attempt, connection: Connection, text: str | None
    ) -> tuple[bool, bool]:
        held, cancel = fenced(self, connection, text)
        if not held and self.final is not None:
            self._next_state = JobState.COMPLETED
        return True, cancel

    def deaf(self: Attempt, why: Interruption, *, waiting: bool = False) -> bool:
        return why is not Interruption.LOST and interrupt(self, why, waiting=waiting)

    Attempt._fence, Attempt.interrupt = unfenced, deaf  # type: ignore[method-assign]


def main(options: Options) -> None:
    """Run jobs until stopped by a signal."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if os.environ.get(UNFENCED):
        remove_fence()
    url = make_url(options.dsn).set(drivername=f"postgresql+{options.driver}")
    asynchronous = options.driver in ASYNC
    register(asynchronous=asynchronous)
    if asynchronous:
        asyncio.run(run_async(url, options))
    else:
        run_sync(url, options)
    say("bye")


def run_sync(url: Any, options: Options) -> None:
    """Run jobs in threads."""
    from sqlalchemy import create_engine

    engine = create_engine(url, **engine_options(options))
    runner = Runner(sessionmaker(engine), Job, **runner_options(options))
    say("hello", str(runner.id))
    runner.run()
    engine.dispose()


async def run_async(url: Any, options: Options) -> None:
    """Run jobs in tasks."""
    engine = create_async_engine(url, **engine_options(options))
    runner = AsyncRunner(async_sessionmaker(engine), Job, **runner_options(options))
    say("hello", str(runner.id))
    await runner.run()
    await engine.dispose()


if __name__ == "__main__":
    main(Options(**json.loads(sys.argv[1])))
