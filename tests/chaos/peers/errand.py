"""
What all systems do here: errands that move money, written without help of theirs.

The effects are plain INSERTs and UPDATEs. An application would guard each against its
own repetition; left out, so that the table shows what the system itself sees to.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.chaos.app import Account, Posting
from tests.chaos.ledger import LedgerAway, tell

PATIENCE = 2.0  # seconds an errand may take longer than it meant to


@dataclass(frozen=True)
class Errand:
    """The arguments of a job."""

    number: int
    source: int
    target: int
    amount: int
    seconds: float

    def facts(self) -> dict[str, Any]:
        """Return them as JSON."""
        return asdict(self)


class Mishap(Exception):
    """What errands raise now and then, to be tried again."""


class TooLate(Exception):
    """The errand took so long that it is given up, for good."""


TRANSIENT = (Mishap, LedgerAway, DBAPIError, OSError)
"""What is tried again."""


def say(word: str, *values: Any) -> None:
    """Tell the referee."""
    os.write(1, json.dumps([word, *values]).encode() + b"\n")


@dataclass(frozen=True)
class Bank:
    """What a worker's process knows."""

    worker: str
    ledger: str
    seed: str

    @asynccontextmanager
    async def attempt(self, job: int) -> AsyncIterator[None]:
        """Tell the referee when an attempt starts, and how it ends."""
        key = uuid4().hex
        say("start", job, key, time.time())
        try:
            yield
        except BaseException as exc:
            say("end", job, key, type(exc).__name__, time.time())
            raise
        say("end", job, key, "returned", time.time())

    async def work(self, errand: Errand) -> None:
        """
        Do all but the writes.

        Raises:
            TooLate: If it took too long, as after a stop; in half of these cases.
            LedgerAway: If the ledger did not say yes.
        """
        started = time.monotonic()
        await asyncio.sleep(errand.seconds)
        late = time.monotonic() - started > errand.seconds + PATIENCE
        if late and random.Random(f"{self.seed} {errand.number}").random() < 0.5:
            raise TooLate(f"errand {errand.number}")
        key = f"errand:{errand.number}"
        await asyncio.to_thread(tell, self.ledger, key, errand.facts())

    async def move(self, session: AsyncSession, errand: Errand) -> None:
        """
        Write the effects into the open transaction.

        Raises:
            Mishap: Now and then, after the writes.
        """
        for step, account, amount in (
            ("withdraw", errand.source, -errand.amount),
            ("deposit", errand.target, errand.amount),
        ):
            posting = Posting(
                job_id=errand.number,
                step=step,
                account_id=account,
                amount=amount,
                token=0,
                worker=self.worker,
                pid=os.getpid(),
            )
            session.add(posting)
        # In one order, so that two errands do not wait for each other in a circle.
        for account, amount in sorted(
            [(errand.source, -errand.amount), (errand.target, errand.amount)]
        ):
            new = Account.balance + amount
            stmt = update(Account).where(Account.id == account).values(balance=new)
            await session.execute(stmt.execution_options(synchronize_session=False))
        await session.flush()
        if random.random() < 0.03:
            raise Mishap(f"errand {errand.number} had bad luck")
