"""The bank: accounts, postings, and jobs that move money between accounts."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, Text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import Arg, JobMixin, Retry, Snooze, arg, constant
from sqla_jobs.handlers import Handler
from tests.chaos.ledger import tell

ACCOUNTS = 20
OPENING = 1_000_000
SOON = constant(timedelta(seconds=0.1))
MANY = 100_000  # attempts: faults must not use them up


class Base(DeclarativeBase):
    """The application's own."""


class Job(JobMixin, Base):
    """The job system."""

    __tablename__ = "jobs"

    token: Arg[str] = arg(default="")


class Account(Base):
    """Money, in cents."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int] = mapped_column(BigInteger)


class Posting(Base):
    """One effect of a step of a job; nothing is unique: a double one is seen."""

    __tablename__ = "postings"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigInteger, index=True)
    step: Mapped[str] = mapped_column(Text)
    account_id: Mapped[int]
    amount: Mapped[int]
    token: Mapped[int] = mapped_column(BigInteger)
    worker: Mapped[str] = mapped_column(Text)
    pid: Mapped[int]


class Order(Base):
    """What the client asked for, committed together with the job."""

    __tablename__ = "orders"

    token: Mapped[str] = mapped_column(Text, primary_key=True)


class Transfer(Job, kind="transfer", max_attempts=MANY, backoff=SOON):
    """Withdraws, tells the ledger, deposits."""

    source: Arg[int] = arg(default=0)
    target: Arg[int] = arg(default=0)
    amount: Arg[int] = arg(default=0)


class Audit(Job, kind="audit", max_attempts=MANY, backoff=SOON):
    """Works for several leases, with a checkpoint after each slice."""

    account: Arg[int] = arg(default=0)
    slices: Arg[int] = arg(default=0)
    pause: Arg[float] = arg(default=0.4)


class Nap(Job, kind="nap", max_attempts=MANY, backoff=SOON):
    """Works for more than a lease without a word to the database."""

    account: Arg[int] = arg(default=0)
    seconds: Arg[float] = arg(default=0.0)


class Note(Job, kind="note", max_attempts=MANY, backoff=SOON):
    """Only tells the ledger, so that its outcome is settled in a batch."""


class Entry(
    Job, kind="entry", queue="entries", ordered=True, max_attempts=MANY, backoff=SOON
):
    """One line in the book of an account; the lines keep their order."""

    account: Arg[int] = arg(default=0)


class Fee(Job, kind="fee", max_attempts=MANY, backoff=SOON):
    """Charged together with others in one transaction, from and to one account."""

    account: Arg[int] = arg(default=0)


def steps_of(kind: str, payload: dict[str, Any]) -> list[str]:
    """Return the steps whose effects a completed job has left, each once."""
    match kind:
        case "transfer":
            return ["withdraw", "deposit"]
        case "audit":
            return [f"slice {n}" for n in range(payload["slices"])]
        case "note":
            return []
        case _:
            return [kind]


def reports_of(kind: str) -> list[str]:
    """Return what jobs of a kind tell the ledger."""
    return [kind] if kind in ("transfer", "note") else []


class Mishap(Exception):
    """What jobs raise now and then; all of them are tried again."""


@dataclass(frozen=True)
class Surroundings:
    """What handlers know of the process they run in; `ctx.resources`."""

    worker: str
    ledger: str
    seed: str
    say: Callable[..., None]


class Run:
    """One run of a job: its facts, copied, and its luck."""

    def __init__(self, job: Any, ctx: Any) -> None:
        self.id, self.lease_token, self.kind = job.id, job.lease_token, job.kind
        self.payload = dict(job.payload)
        self.ctx, self.around = ctx, ctx.resources
        lucky = f"{self.around.seed} {job.token} {self.lease_token}"
        self._dice = random.Random(lucky)

    def mishap(self) -> None:
        """
        Go wrong now and then.

        Raises:
            Mishap, Retry, Snooze: Each in some of the cases.
        """
        luck = self._dice.random()
        if luck < 0.03:
            raise Mishap(f"job {self.id} had bad luck")
        if luck < 0.04:
            raise Retry("once more", after=timedelta(seconds=0.2))
        if luck < 0.06:
            raise Snooze(after=timedelta(seconds=0.3))

    def post(self, session: Session, step: str, account: int, amount: int = 0) -> None:
        """Write the effect of a step; with an amount, move it."""
        session.add(
            Posting(
                job_id=self.id,
                step=step,
                account_id=account,
                amount=amount,
                token=self.lease_token,
                worker=self.around.worker,
                pid=os.getpid(),
            )
        )
        if amount:
            new = Account.balance + amount
            moving = update(Account).where(Account.id == account).values(balance=new)
            session.execute(moving.execution_options(synchronize_session=False))

    def tell(self, what: str) -> None:
        """Report to the ledger, under a key that later attempts share."""
        entry = {"kind": self.kind, "payload": self.payload, "what": what}
        tell(self.around.ledger, f"{self.ctx.idempotency_key}:{what}", entry)

    def withdraw(self, session: Session) -> None:
        """Take the money of a transfer."""
        amount = -self.payload["amount"]
        self.post(session, "withdraw", self.payload["source"], amount)

    def deposit(self, session: Session) -> None:
        """Bring it; in some runs the effects are written and then given up."""
        self.post(session, "deposit", self.payload["target"], self.payload["amount"])
        session.flush()
        self.mishap()


def transfer(job: Any, ctx: Any) -> None:
    """Move money, in a thread."""
    run = Run(job, ctx)
    if "withdrawn" not in ctx.state:
        run.withdraw(ctx.session)
        ctx.checkpoint(withdrawn=True)
    run.mishap()
    run.tell("transfer")
    run.deposit(ctx.session)


async def async_transfer(job: Any, ctx: Any) -> None:
    """Move money, in a task."""
    run = Run(job, ctx)
    if "withdrawn" not in ctx.state:
        await ctx.session.run_sync(run.withdraw)
        await ctx.checkpoint(withdrawn=True)
    run.mishap()
    await asyncio.to_thread(run.tell, "transfer")
    await ctx.session.run_sync(run.deposit)


def audit(job: Any, ctx: Any) -> None:
    """Work in slices, in a thread."""
    run = Run(job, ctx)
    account, slices, pause = (run.payload[k] for k in ("account", "slices", "pause"))
    for number in range(ctx.state.get("next", 0), slices):
        time.sleep(pause)
        run.post(ctx.session, f"slice {number}", account)
        if number < slices - 1:
            ctx.checkpoint(next=number + 1)


async def async_audit(job: Any, ctx: Any) -> None:
    """Work in slices, in a task."""
    run = Run(job, ctx)
    account, slices, pause = (run.payload[k] for k in ("account", "slices", "pause"))
    for number in range(ctx.state.get("next", 0), slices):
        await asyncio.sleep(pause)
        run.post(ctx.session, f"slice {number}", account)
        if number < slices - 1:
            await ctx.checkpoint(next=number + 1)


def nap(job: Any, ctx: Any) -> None:
    """Sleep, in a thread; the heartbeat alone keeps the lease."""
    run = Run(job, ctx)
    until = time.monotonic() + run.payload["seconds"]
    while time.monotonic() < until:
        ctx.raise_if_interrupted()
        time.sleep(0.1)
    run.post(ctx.session, "nap", run.payload["account"])


async def async_nap(job: Any, ctx: Any) -> None:
    """Sleep, in a task."""
    run = Run(job, ctx)
    await asyncio.sleep(run.payload["seconds"])
    run.post(ctx.session, "nap", run.payload["account"])


def note(job: Any, ctx: Any) -> dict[str, Any]:
    """Tell the ledger, in a thread."""
    run = Run(job, ctx)
    run.tell("note")
    run.mishap()
    return {"told": True}


async def async_note(job: Any, ctx: Any) -> dict[str, Any]:
    """Tell the ledger, from a task."""
    run = Run(job, ctx)
    await asyncio.to_thread(run.tell, "note")
    run.mishap()
    return {"told": True}


def entry(job: Any, ctx: Any) -> None:
    """Write a line, in a thread."""
    run = Run(job, ctx)
    run.post(ctx.session, "entry", run.payload["account"])
    run.mishap()


async def async_entry(job: Any, ctx: Any) -> None:
    """Write a line, in a task."""
    entry(job, ctx)


def fees(jobs: Sequence[Any], ctx: Any) -> None:
    """Charge several at once."""
    for job in jobs:
        run = Run(job, ctx)
        run.around.say("start", run.id, run.lease_token, job.attempt, run.kind)
        run.post(ctx.session, "fee", run.payload["account"])


async def async_fees(jobs: Sequence[Any], ctx: Any) -> None:
    """Charge several at once, in a task."""
    fees(jobs, ctx)


HANDLERS = (
    (Transfer, transfer, async_transfer),
    (Audit, audit, async_audit),
    (Nap, nap, async_nap),
    (Note, note, async_note),
    (Entry, entry, async_entry),
    (Fee, fees, async_fees),
)


def register(*, asynchronous: bool) -> None:
    """Give every kind its sync or its async handler, for this whole process."""
    for cls, plain, awaited in HANDLERS:
        call = awaited if asynchronous else plain
        made = Handler(call, is_async=asynchronous, many=cls is Fee)
        cls.__job_handler__ = made
