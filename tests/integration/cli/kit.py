"""An application for the command line, and the command as a process that runs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy.orm import Session

from sqla_jobs import JobState

ROOT = Path(__file__).parents[3]

posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals")

APP = """
import asyncio, os
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, sessionmaker
from sqla_jobs import Arg, AsyncRunner, JobMixin, Runner, arg

class Base(DeclarativeBase):
    pass

class Job(JobMixin, Base):
    __tablename__ = "cli_jobs"

class Greet(Job, kind="greet"):
    name: Arg[str] = arg(default="you")

    def run(self, ctx):
        if self.name == "nobody":
            raise ValueError(self.name)
        print(f"hello {self.name}\\n", end="", flush=True)

class Wait(Job, kind="wait"):
    def run(self, ctx):
        print("job started", flush=True)
        os.read(0, 1)
        print("job ended", flush=True)

class AsyncGreet(Job, kind="async_greet"):
    async def run(self, ctx):
        print("hello asynchronously", flush=True)

class AsyncWait(Job, kind="async_wait"):
    async def run(self, ctx):
        print("job started", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, os.read, 0, 1)
        print("job ended", flush=True)

DSN = os.environ["APP_DSN"]
engine = create_engine(DSN)
Session = sessionmaker(engine)
runner = Runner(Session, Job, name="own name")
aengine = create_async_engine(DSN)
AsyncSession = async_sessionmaker(aengine)
arunner = AsyncRunner(AsyncSession, Job)

def make_runner():
    return Runner(Session, Job)

def make_named(name):
    return Runner(Session, Job, name=name)

def make_nothing():
    return "nothing"

async def make_coroutine():
    return runner

def make_broken():
    return 1 / 0

class Holder:
    worker = runner
"""

Command = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


class Running:
    """A command that runs: what it prints, and its end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Read lines until so many match; return the last match."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if found := re.search(pattern, line):
                times -= 1
                if not times:
                    return found
        pytest.fail(f"no line matches {pattern!r}:\n{self.output}")

    def end(self, text: str | None = None) -> int:
        """Type *text*, wait for the end and return the exit status."""
        rest, _ = self.process.communicate(text, timeout=30)
        self.output += rest
        return self.process.returncode


def state_of(session: Session, job: Any) -> JobState:
    """Return the state of *job* in the database."""
    session.refresh(job)
    return JobState(job.state)
