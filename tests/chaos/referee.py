"""Runs the bank: strikes by a schedule, waits for the end, collects what happened."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from tests.chaos.app import (
    OPENING,
    Account,
    Job,
    Posting,
    reports_of,
    steps_of,
)
from tests.chaos.checker import (
    AttemptFacts,
    History,
    JobFacts,
    Limits,
    PostingFacts,
    Recovery,
    Violation,
    check,
)
from tests.chaos.load import RATE, Load
from tests.chaos.nemesis import Nemesis
from tests.chaos.scene import GRACE, LEASE, POLL, Scene
from tests.chaos.story import Struck, story
from tests.chaos.watch import Watch

SLACK = 1.0
PAUSES = (1.0, 3.0)  # seconds between two strikes
FIRST = 2.0
DRAIN = 60.0
STORIES = 5
LIMITS = Limits(recovery=LEASE + POLL + SLACK, handover=1.0, wait=LEASE + POLL + 5.0)


@dataclass(frozen=True)
class Strike:
    """One entry of the schedule: wait for *pause* seconds, then strike."""

    pause: float
    name: str
    seed: str


@dataclass
class Result:
    """A run: its history, and what the report shows beside it."""

    history: History
    strikes: list[Struck]
    skipped: dict[str, str]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)
    """Of the first jobs that broke a promise."""


def schedule(names: Sequence[str], seed: str) -> Iterator[Strike]:
    """Yield strikes for ever: all of *names* in a random order, then again."""
    dice = random.Random(f"{seed} schedule")
    pause = FIRST
    for number in range(1_000_000):
        for name in dice.sample(names, len(names)):
            yield Strike(pause, name, f"{seed} {number} {name}")
            pause = dice.uniform(*PAUSES)


class Referee:
    """
    Runs one game.

    Args:
        scene: Not open yet.
        nemeses: Those that shall strike.
        seconds: How long strikes go on; the end takes longer.
        tell: Called often with what goes on, as ``tell(seconds, text)``.
    """

    def __init__(
        self,
        scene: Scene,
        nemeses: Sequence[Nemesis],
        *,
        seconds: float,
        rate: float = RATE,
        tell: Callable[[float, str], None] = lambda seconds, text: None,
    ) -> None:
        self.scene, self.nemeses, self.seconds = scene, nemeses, seconds
        self.rate, self.tell = rate, tell
        self.strikes: list[Struck] = []
        self.skipped: dict[str, str] = {}
        self.failures: list[str] = []

    def run(self) -> Result:
        """Play; return the history."""
        with ExitStack() as stack:
            stack.callback(self.scene.close)
            self.scene.open()
            for nemesis in self.nemeses:
                stack.callback(nemesis.heal)
            self._choose()
            watch = Watch(self.scene.new_engine())
            load = Load(self.scene.new_engine(), self.scene.seed, self.rate)
            for worker in self.scene.workers:
                if not worker.await_ready():
                    self.failures.append(f"{worker.runner_name} did not start to work")
            self.start = time.monotonic()
            watch.start()
            load.start()
            self._strike(watch)
            self._drain(watch, load)
            return self._result(watch, load)

    def _choose(self) -> None:
        usable = []
        for nemesis in self.nemeses:
            why = nemesis.why_not(self.scene)
            if why is None:
                usable.append(nemesis)
            else:
                self.skipped[nemesis.name] = why
        self.usable = {nemesis.name: nemesis for nemesis in usable}

    # While it runs

    def _strike(self, watch: Watch) -> None:
        until = self.start + self.seconds
        for strike in schedule(sorted(self.usable), self.scene.seed):
            if not self.usable or time.monotonic() + strike.pause >= until:
                break
            self._wait(strike.pause, watch, "")
            self._strike_once(strike, watch)
        while (left := until - time.monotonic()) > 0:
            self._wait(min(left, 1.0), watch, "")

    def _strike_once(self, strike: Strike, watch: Watch) -> None:
        nemesis, start = self.usable[strike.name], time.monotonic()
        self.scene.striking = strike.name
        work = threading.Thread(target=self._strike_with, args=(nemesis, strike))
        work.start()
        while work.is_alive():
            self._say(watch, strike.name)
            work.join(0.5)
        self.strikes.append(Struck(strike.name, start, time.monotonic()))

    def _strike_with(self, nemesis: Nemesis, strike: Strike) -> None:
        try:
            nemesis.strike(self.scene, random.Random(strike.seed))
        except Exception as exc:  # noqa: BLE001 - reported; the others strike on
            self.failures.append(f"{strike.name} failed: {type(exc).__name__}: {exc}")
        finally:
            nemesis.heal()

    def _wait(self, seconds: float, watch: Watch, what: str) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._say(watch, what)
            time.sleep(min(left, 0.5))

    def _say(self, watch: Watch, what: str) -> None:
        seen = watch.seen
        text_ = f"{seen.done} jobs done, {seen.live} live, strike {len(self.strikes)}"
        self.tell(time.monotonic() - self.start, f"{text_} {what}")

    # The end

    def _drain(self, watch: Watch, load: Load) -> None:
        """Let the workers finish all jobs, then end them."""
        load.stop()
        until = time.monotonic() + DRAIN
        self.drained = False
        while time.monotonic() < until and not self.drained:
            self._wait(0.5, watch, "ending")
            with self.scene.engine.connect() as connection:
                self.drained = not connection.scalar(text(LEFT))
        self.ended = time.monotonic()
        watch.stop()
        self.scene.stop_keeping()
        for worker in self.scene.workers:
            if worker.alive and worker.await_ready(5):
                worker.signal(signal.SIGTERM)
        for worker in self.scene.workers:
            try:
                code = worker.process.wait(GRACE + 15)
            except Exception:  # noqa: BLE001 - any failure to end in time
                self.failures.append(f"{worker.runner_name} does not end on SIGTERM")
                worker.kill()
            else:
                if code:
                    self.failures.append(f"{worker.runner_name} ended with {code}")
            worker.close()
        for thread in (watch, load):
            if thread.error is not None:
                self.failures.append(f"{thread.name}: {thread.error!r}")

    def _result(self, watch: Watch, load: Load) -> Result:
        history = self._history()
        known = load.known
        history.sent = frozenset(known.sent)
        history.taken_back = frozenset(known.taken_back)
        history.may_cancel = frozenset(known.may_cancel)
        history.must_cancel = frozenset(known.must_cancel)
        history.live_sums = watch.seen.sums
        history.waits = [(j, w, s) for (j, w, _), s in watch.seen.waits.items()]
        self._add_recoveries(history)
        seconds = self.ended - self.start
        result = Result(history, self.strikes, self.skipped, seconds)
        result.facts = {
            "orders": len(known.sent),
            "commits without an answer that had happened": known.unknown,
            "longest wait": round(watch.seen.longest, 2),
            "outages": len(watch.seen.outages),
            "outage seconds": round(sum(b - a for a, b in watch.seen.outages), 1),
            "worker processes": sum(worker.starts for worker in self.scene.workers),
        }
        result.violations = check(history, LIMITS)
        jobs = dict.fromkeys(one.job for one in result.violations if one.job)
        for job in [*jobs][:STORIES]:
            result.stories += story(self.scene, self.strikes, job, self.start)
        return result

    def _history(self) -> History:
        with Session(self.scene.engine) as session:
            attempts = session.execute(
                select(Job.Attempt.job_id, Job.Attempt.lease_token, Job.Attempt.outcome)
            )
            postings = session.execute(
                select(
                    Posting.id,
                    Posting.job_id,
                    Posting.step,
                    Posting.account_id,
                    Posting.amount,
                )
            )
            return History(
                opening=OPENING,
                balances={
                    one.id: one.balance for one in session.scalars(select(Account))
                },
                jobs=[_facts(row) for row in session.scalars(select(Job))],
                attempts=[AttemptFacts(*row) for row in attempts],
                postings=[PostingFacts(*row) for row in postings],
                ledger=self.scene.ledger.entries,
                handovers=self.scene.handovers,
                server_log=self.scene.server.log,
                worker_logs=self.scene.logs,
                failures=[*self.failures, *self.scene.unexpected],
            )

    def _add_recoveries(self, history: History) -> None:
        starts: dict[int, list[tuple[float, int]]] = {}
        for event in self.scene.events:
            if event.word == "start":
                job, token, *_ = event.values
                starts.setdefault(job, []).append((event.at, token))
        crashed = {(a.job, a.token) for a in history.attempts if a.outcome == "crash"}
        found = []
        for hit in self.scene.hits:
            held = hit.held
            later = [at for at, token in starts.get(held.job, ()) if token > held.token]
            seconds = min(later) - hit.at if later else None
            rescued = (held.job, held.token) in crashed
            found.append(Recovery(hit.nemesis, held.job, held.kind, rescued, seconds))
        history.recoveries = found


LEFT = (
    "SELECT count(*) FROM jobs"
    " WHERE state NOT IN ('completed', 'cancelled', 'discarded')"
)


def _facts(job: Any) -> JobFacts:
    key = f"{Job.__tablename__}:{job.id}"
    return JobFacts(
        id=job.id,
        kind=job.kind,
        order=job.token,
        state=str(job.state),
        attempt=job.attempt,
        crashes=job.crashes,
        lease_token=job.lease_token,
        channel=job.channel if job.ordered else "",
        steps=steps_of(job.kind, job.payload),
        reports=[f"{key}:{what}" for what in reports_of(job.kind)],
    )
