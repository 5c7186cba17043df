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
    HandedOver,
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
AFTER = 3.0  # until all runners are back after the server was
AT_THE_SERVER = frozenset({"kill_postmaster", "terminate_backends", "failover"})


def limits(slow: float) -> Limits:
    """Return what things may take on a machine that is *slow* times too busy."""
    slack, base = SLACK * slow, LEASE + POLL
    return Limits(recovery=base + slack, handover=slack, wait=base + 5 * slack)


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
    limits: Limits = field(default_factory=lambda: limits(1.0))
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
            if name in AT_THE_SERVER:  # what comes next is measured
                pause += AFTER


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
        load: type[Load] = Load,
        tell: Callable[[float, str], None] = lambda seconds, text: None,
    ) -> None:
        self.scene, self.nemeses, self.seconds = scene, nemeses, seconds
        self.rate, self.load, self.tell = rate, load, tell
        self.strikes: list[Struck] = []
        self.skipped: dict[str, str] = {}
        self.failures: list[str] = []
        self._at_work: list[str] = []

    def run(self) -> Result:
        """Play; return the history."""
        with ExitStack() as stack:
            stack.callback(self.scene.close)
            self.scene.open()
            for nemesis in self.nemeses:
                stack.callback(nemesis.heal)
            self._choose()
            engines = [self.scene.new_engine(one) for one in ("referee", "client")]
            for engine in engines:
                stack.callback(engine.dispose)
            watch = Watch(engines[0])
            load = self.load(engines[1], self.scene.seed, self.rate)
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
        """Let the nemeses strike, those with workers of their own beside the others."""
        own = [n for n, nemesis in self.usable.items() if hasattr(nemesis, "routes")]
        others = [name for name in self.usable if name not in own]
        lanes = [
            threading.Thread(target=self._lane, args=(lane, sorted(names)))
            for lane, names in enumerate((others, own))
            if names
        ]
        for lane in lanes:
            lane.start()
        until = self.start + self.seconds
        while (left := until - time.monotonic()) > 0:
            self._wait(min(left, 1.0), watch, ", ".join(self._at_work))
        for lane in lanes:
            while lane.is_alive():
                self._wait(0.2, watch, ", ".join(self._at_work))

    def _lane(self, lane: int, names: Sequence[str]) -> None:
        until = self.start + self.seconds
        for strike in schedule(names, f"{self.scene.seed} {lane}"):
            if time.monotonic() + strike.pause >= until:
                return
            time.sleep(strike.pause)
            nemesis, start = self.usable[strike.name], time.monotonic()
            self.scene.striking = strike.name
            self._at_work.append(strike.name)
            try:
                nemesis.strike(self.scene, random.Random(strike.seed))
            except Exception as exc:  # noqa: BLE001 - reported; the others strike on
                what = f"{type(exc).__name__}: {exc}"
                self.failures.append(f"{strike.name} failed: {what}")
            finally:
                nemesis.heal()
                self._at_work.remove(strike.name)
            self.strikes.append(Struck(strike.name, start, time.monotonic()))

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
        self._add_times(history, self._excuses(watch))
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
        slow = percentile(watch.seen.slow, 0.9) or 1.0
        result.facts["machine too slow by, p90"] = f"{slow:.1f} times"
        result.limits = limits(slow)
        result.violations = check(history, result.limits)
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
                server_log=self.scene.server.log,
                worker_logs=self.scene.logs,
                failures=[*self.failures, *self.scene.unexpected],
            )

    def _excuses(self, watch: Watch) -> list[tuple[float, float]]:
        """Return the times in which the server itself was struck, or was away."""
        struck = [(s.start, s.end) for s in self.strikes if s.name in AT_THE_SERVER]
        return [(a, b + AFTER) for a, b in [*struck, *watch.seen.outages]]

    def _add_times(
        self, history: History, excuses: Sequence[tuple[float, float]]
    ) -> None:
        def excused(at: float, seconds: float) -> bool:
            return any(a <= at + seconds and at <= b for a, b in excuses)

        history.handovers = [
            HandedOver(one.kind, one.seconds, excused(one.at, one.seconds))
            for one in self.scene.handovers
        ]
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
            found.append(
                Recovery(
                    hit.nemesis,
                    held.job,
                    held.kind,
                    rescued,
                    seconds,
                    excused(hit.at, seconds or 0.0),
                )
            )
        history.recoveries = found


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that *share* of them do not exceed."""
    if not values:
        return None
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


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
