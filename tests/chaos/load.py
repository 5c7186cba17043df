"""The client of the bank: sends orders all the time, and knows which were accepted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs import HoldExpired, abort_hold, confirm_hold, request_cancel
from tests.chaos.app import (
    ACCOUNTS,
    Audit,
    Entry,
    Fee,
    Job,
    Nap,
    Note,
    Order,
    Transfer,
)

RATE = 12.0  # orders per second
CHANNELS = 3
HOLD = timedelta(seconds=3)
AGAIN = 0.1


@dataclass
class Sent:
    """What the client knows of its orders."""

    sent: set[str] = field(default_factory=set)
    taken_back: set[str] = field(default_factory=set)
    may_cancel: set[str] = field(default_factory=set)
    must_cancel: set[str] = field(default_factory=set)
    unknown: int = 0
    """Commits without an answer that had happened."""


class Load(threading.Thread):
    """
    Sends orders at a rate, the same ones for the same seed.

    An order that gets no answer is sent again; the primary key of `Order` tells when it
    had been accepted the first time.
    """

    def __init__(self, engine: Engine, seed: str, rate: float = RATE) -> None:
        super().__init__(daemon=True)
        self.engine, self.rate = engine, rate
        self.known = Sent()
        self._dice = random.Random(f"{seed} load")
        self._ended = threading.Event()
        self.error: BaseException | None = None

    def stop(self) -> None:
        """Send no more; return when all sent orders have their answer."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Send until stopped."""
        number, start = 0, time.monotonic()
        try:
            while not self._ended.wait(start + number / self.rate - time.monotonic()):
                number += self.send(f"order {number}")
        except BaseException as exc:  # noqa: BLE001 - the referee reports it
            self.error = exc

    def send(self, name: str) -> int:
        """Send one transaction; return the number of its orders."""
        dice = self._dice
        luck, count = dice.random(), dice.randint(1, 3)
        orders = [self._order(f"{name}.{n}") for n in range(count)]
        if luck < 0.05:
            self._take_back(orders)
        elif luck < 0.10:
            self._hold(f"{name}.held", dice.choice(["confirm", "abort", "forget"]))
        elif luck < 0.13:
            self._cancel(f"{name}.cancelled")
        else:
            self._commit(orders)
        return count

    def _order(self, token: str) -> Callable[[], Any]:
        dice = self._dice
        account, other = dice.sample(range(ACCOUNTS), 2)
        luck, number = dice.random(), dice.randint(1, 1000)
        if luck < 0.50:
            given: dict[str, Any] = {"source": account, "target": other}
            return lambda: Transfer(token=token, amount=number, **given)
        if luck < 0.65:
            return lambda: Note(token=token)
        if luck < 0.75:
            return lambda: Fee(token=token, account=account)
        if luck < 0.85:
            channel = str(account % CHANNELS)
            return lambda: Entry(token=token, account=account, channel=channel)
        if luck < 0.93:
            slices = 3 + number % 20
            return lambda: Audit(token=token, account=account, slices=slices)
        seconds = 1.0 + number % 4
        return lambda: Nap(token=token, account=account, seconds=seconds)

    def _commit(self, orders: list[Callable[[], Any]]) -> list[int]:
        """Enqueue until that is known to have happened; return the ids of the jobs."""
        lost = False
        while True:
            jobs = [make() for make in orders]
            try:
                with Session(self.engine, expire_on_commit=False) as session:
                    session.add_all(Order(token=job.token) for job in jobs)
                    session.add_all(jobs)
                    session.commit()
                    ids = [job.id for job in jobs]
            except IntegrityError:
                if not lost:
                    raise
                self.known.unknown += 1
                ids = self._insist(partial(self._ids, [job.token for job in jobs]))
            except DBAPIError:
                lost = True
                time.sleep(AGAIN)
                continue
            self.known.sent |= {job.token for job in jobs}
            return ids

    def _ids(self, tokens: list[str]) -> list[int]:
        with Session(self.engine) as session:
            ids = select(Job.id).where(Job.token.in_(tokens)).order_by(Job.id)
            return list(session.scalars(ids))

    def _take_back(self, orders: list[Callable[[], Any]]) -> None:
        jobs = [make() for make in orders]
        self.known.taken_back |= {job.token for job in jobs}
        try:
            with Session(self.engine) as session:
                session.add_all(jobs)
                session.flush()
                session.rollback()
        except DBAPIError:
            time.sleep(AGAIN)

    def _hold(self, token: str, fate: str) -> None:
        """Send a held order; then confirm it, abort it, or let it expire."""
        known = self.known
        known.may_cancel.add(token)
        (held,) = self._commit([lambda: Note(token=token, hold_for=HOLD)])
        if fate == "forget":
            known.must_cancel.add(token)
            return
        verb = confirm_hold if fate == "confirm" else abort_hold
        if self._insist(lambda: self._end_hold(verb, held)) is not True:
            return  # it may have happened in a transaction without an answer
        if fate == "confirm":
            known.may_cancel.discard(token)
        else:
            known.must_cancel.add(token)

    def _end_hold(self, verb: Callable[..., None], held: int) -> bool:
        try:
            with Session(self.engine) as session:
                verb(session, Job, held)
                session.commit()
        except HoldExpired:
            return False
        return True

    def _cancel(self, token: str) -> None:
        """Send a long order, and cancel it, be it before or while it runs."""
        self.known.may_cancel.add(token)
        (job,) = self._commit([lambda: Audit(token=token, account=0, slices=20)])
        self._ended.wait(self._dice.choice([0.0, 0.5, 1.5]))
        self._insist(lambda: self._request_cancel(job))

    def _request_cancel(self, job: int) -> None:
        with Session(self.engine) as session:
            request_cancel(session, Job, job)
            session.commit()

    def _insist(self, work: Callable[[], Any]) -> Any:
        while True:
            try:
                return work()
            except DBAPIError:
                time.sleep(AGAIN)
