"""What must hold after a run of the bank, checked on its history; pure."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

FINAL = ("completed", "cancelled", "discarded")
EXPECTED_ERRORS = frozenset({"Mishap", "LedgerAway", "Retry", "Snooze"})
"""What handlers raise on purpose."""
DATABASE_ERRORS = frozenset(
    {"OperationalError", "InterfaceError", "InternalError", "DBAPIError"}
    | {
        "FileNotFoundError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "TimeoutError",
    }
)
"""What handlers get when the database goes away under them."""
HARMLESS = ("Exception closing connection", "Exception terminating connection")
"""What SQLAlchemy says of a connection that is dead already."""
KILLERS = frozenset(
    {"sigkill", "sigstop", "partition", "partition_in", "partition_out"}
)
"""Nemeses after which the jobs they hit are back within the promised time."""
PROMPT = frozenset({"idle", "audit"})
"""What is handed over at once: jobs with a checkpoint at least every 0.5 s."""
LIBPQ = re.compile(r"(FATAL|WARNING|NOTICE):  |$")
"""What libpq prints that the server said of itself."""
DEADLOCK = re.compile(r"deadlock detected|PANIC:|terminated by signal (?!9\b)\d+")


@dataclass(frozen=True)
class JobFacts:
    """A job's row at the end; *steps* are those that it must have left if completed."""

    id: int
    kind: str
    order: str
    state: str
    attempt: int = 1
    crashes: int = 0
    lease_token: int = 1
    channel: str = ""
    steps: Sequence[str] = ()
    reports: Sequence[str] = ()  # what it tells the ledger


@dataclass(frozen=True)
class AttemptFacts:
    """A row of the table of attempts."""

    job: int
    token: int
    outcome: str


@dataclass(frozen=True)
class PostingFacts:
    """An effect in the database."""

    id: int
    job: int
    step: str
    account: int = 0
    amount: int = 0


@dataclass(frozen=True)
class Recovery:
    """
    A lease whose holder was struck; *seconds* until the job ran again, if heard.

    What fell into a time in which the server itself was struck is *excused*.
    """

    nemesis: str
    job: int
    kind: str
    rescued: bool
    seconds: float | None
    excused: bool = False


@dataclass(frozen=True)
class HandedOver:
    """A job, by its kind, or an "idle" runner, *seconds* after SIGTERM."""

    kind: str
    seconds: float
    excused: bool = False


@dataclass(frozen=True)
class Limits:
    """Seconds that things may take."""

    recovery: float
    handover: float
    wait: float


@dataclass
class History:
    """Everything that is known of a run."""

    opening: int = 0
    balances: Mapping[int, int] = field(default_factory=dict)
    jobs: Sequence[JobFacts] = ()
    attempts: Sequence[AttemptFacts] = ()
    postings: Sequence[PostingFacts] = ()
    sent: frozenset[str] = frozenset()
    """Orders whose commit was acknowledged."""
    taken_back: frozenset[str] = frozenset()
    """Orders that the client rolled back."""
    may_cancel: frozenset[str] = frozenset()
    """Orders that the client asked to cancel, or held and did not confirm."""
    must_cancel: frozenset[str] = frozenset()
    """Held orders whose end was acknowledged."""
    ledger: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Entries by idempotency key."""
    live_sums: Sequence[str] = ()
    """What did not add up while the run went on."""
    waits: Sequence[tuple[int, str, float]] = ()
    """Job, what it waited for, and how many seconds."""
    recoveries: Sequence[Recovery] = ()
    handovers: Sequence[HandedOver] = ()
    server_log: str = ""
    worker_logs: Sequence[tuple[str, str]] = ()
    failures: Sequence[str] = ()
    """What the referee itself saw go wrong, as a worker that ended by itself."""

    @cached_property
    def by_id(self) -> dict[int, JobFacts]:
        """The jobs by id."""
        return {job.id: job for job in self.jobs}

    @cached_property
    def attempts_of(self) -> dict[int, list[AttemptFacts]]:
        """The attempts by job."""
        found: dict[int, list[AttemptFacts]] = defaultdict(list)
        for attempt in self.attempts:
            found[attempt.job].append(attempt)
        return found

    @cached_property
    def effects(self) -> Counter[tuple[int, str]]:
        """How often each step of each job took effect."""
        return Counter((posting.job, posting.step) for posting in self.postings)


@dataclass(frozen=True)
class Violation:
    """A promise that was broken, and by which job if by one."""

    rule: str
    text: str
    job: int | None = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


Rule = Callable[[History, Limits], Iterator[Violation]]


def check(history: History, limits: Limits) -> list[Violation]:
    """Return all that does not hold."""
    return [found for rule in RULES for found in rule(history, limits)]


def money(history: History, limits: Limits) -> Iterator[Violation]:
    """No money appears or disappears, and every balance is what was posted."""
    total, wanted = sum(history.balances.values()), history.opening
    if total != wanted * len(history.balances):
        yield Violation("money", f"the sum of all accounts changed to {total}")
    moved: Counter[int] = Counter()
    for posting in history.postings:
        moved[posting.account] += posting.amount
    for account, balance in history.balances.items():
        if balance != wanted + moved[account]:
            text = f"account {account} has {balance}, posted {wanted + moved[account]}"
            yield Violation("money", text)
    for text in history.live_sums:
        yield Violation("money", f"during the run: {text}")


def finished(history: History, limits: Limits) -> Iterator[Violation]:
    """Every job reaches one final state, and no other than it may."""
    for job in history.jobs:
        wanted = {"completed"}
        if job.order in history.must_cancel:
            wanted = {"cancelled"}
        elif job.order in history.may_cancel:
            wanted.add("cancelled")
        if job.state not in wanted:
            text = f"job {job.id} ({job.kind}) is {job.state}, not {_or(wanted)}"
            rule = "finished" if job.state in FINAL else "stuck"
            yield Violation(rule, text, job.id)


def outcomes(history: History, limits: Limits) -> Iterator[Violation]:
    """
    Every attempt that counts has exactly one outcome: a row, or the completion.

    Attempts that were snoozed or handed back are not counted and have none.
    """
    for job in history.jobs:
        if job.state not in FINAL:
            continue
        rows = history.attempts_of.get(job.id, [])
        ended = len(rows) + (job.state == "completed")
        if job.attempt != ended:
            text = f"job {job.id} made {job.attempt} attempts, {ended} have an outcome"
            yield Violation("outcomes", text, job.id)
        crashed = sum(row.outcome == "crash" for row in rows)
        if job.crashes != crashed:
            text = f"job {job.id} has {job.crashes} crashes, {crashed} are recorded"
            yield Violation("outcomes", text, job.id)
        ends = sum(row.outcome in ("cancel", "discard") for row in rows)
        if ends > (job.state != "completed"):
            text = f"job {job.id} is {job.state} and was ended {ends} times before"
            yield Violation("outcomes", text, job.id)


def effects(history: History, limits: Limits) -> Iterator[Violation]:
    """Every step of a completed job took effect exactly once, and no other did."""
    done: dict[int, Counter[str]] = defaultdict(Counter)
    for (job_id, step), times in history.effects.items():
        done[job_id][step] = times
    for job in history.jobs:
        for step in dict.fromkeys([*job.steps, *done[job.id]]):
            times, wanted = done[job.id][step], int(step in job.steps)
            if job.state != "completed":
                wanted = min(wanted, times)  # it may have been stopped before
            if times != wanted:
                text = f"job {job.id} ({job.kind}): {step!r} took effect {times} times"
                yield Violation("lost" if not times else "double", text, job.id)
    for job_id in done.keys() - history.by_id.keys():
        yield Violation("effects", f"effects of a job {job_id} that is not there")


def nothing_lost(history: History, limits: Limits) -> Iterator[Violation]:
    """An acknowledged enqueue is one job; one that was rolled back is none."""
    orders = Counter(job.order for job in history.jobs)
    for order in sorted(history.sent):
        if orders[order] != 1:
            rule = "double" if orders[order] else "lost"
            yield Violation(rule, f"order {order} is {orders[order]} jobs")
    for order in sorted(history.taken_back & orders.keys()):
        yield Violation("double", f"order {order} was rolled back and is a job")
    for order in sorted(orders.keys() - history.sent - history.taken_back):
        yield Violation("double", f"nobody sent order {order}, which is a job")


def told(history: History, limits: Limits) -> Iterator[Violation]:
    """The ledger was told at least once, always the same under one key."""
    known = set()
    for job in history.jobs:
        for key in job.reports:
            known.add(key)
            if job.state == "completed" and not history.ledger.get(key):
                text = f"job {job.id} is completed, the ledger has no {key}"
                yield Violation("lost", text, job.id)
    for key, entries in history.ledger.items():
        if key not in known:
            yield Violation("ledger", f"the ledger has {key}, which no job reports")
        if len({json.dumps(entry, sort_keys=True) for entry in entries}) > 1:
            yield Violation("ledger", f"{key} was reported with different contents")


def ordered(history: History, limits: Limits) -> Iterator[Violation]:
    """The effects of an ordered channel come in the order of its jobs."""
    last: dict[str, int] = {}
    for posting in sorted(history.postings, key=lambda one: one.id):
        job = history.by_id.get(posting.job)
        if job is None or not job.channel:
            continue
        if job.id < last.get(job.channel, 0):
            text = f"job {job.id} took effect after job {last[job.channel]}"
            yield Violation("order", f"channel {job.channel}: {text}", job.id)
        last[job.channel] = max(job.id, last.get(job.channel, 0))


def in_time(history: History, limits: Limits) -> Iterator[Violation]:
    """Nothing waits, recovers or is handed over for longer than is promised."""
    for job, what, seconds in history.waits:
        if seconds > limits.wait:
            yield Violation("stuck", f"job {job} {what} for {seconds:.1f} s", job)
    for one in history.recoveries:
        if one.excused or one.seconds is None or one.nemesis not in KILLERS:
            continue
        if one.seconds > limits.recovery:
            text = f"job {one.job} ran again {one.seconds:.2f} s after {one.nemesis}"
            yield Violation("recovery", text, one.job)
    for two in history.handovers:
        if two.kind in PROMPT and not two.excused and two.seconds > limits.handover:
            text = f"{two.kind}: {two.seconds:.2f} s after SIGTERM"
            yield Violation("handover", text)


def quiet(history: History, limits: Limits) -> Iterator[Violation]:
    """No deadlock is reported, and no worker says or does what it should not."""
    for line in history.server_log.splitlines():
        if DEADLOCK.search(line):
            yield Violation("server", line)
    stray: dict[str, list[str]] = {}
    for worker, line in history.worker_logs:
        if line.startswith("{"):
            yield from _strays(worker, stray.pop(worker, []))
            if (problem := _problem(line)) is not None:
                yield Violation("worker", f"{worker}: {problem}")
        elif not LIBPQ.match(line):
            stray.setdefault(worker, []).append(line)
    for worker, lines in stray.items():
        yield from _strays(worker, lines)
    for text in history.failures:
        yield Violation("worker", text)


def _strays(worker: str, lines: Sequence[str]) -> Iterator[Violation]:
    if lines:
        text = "\n".join(lines)
        yield Violation("worker", f"{worker} printed:\n{text}")


def _problem(line: str) -> str | None:
    """Return what is wrong with a record that a worker logged, None if nothing is."""
    record = json.loads(line)
    text, raised = str(record["text"]), record["raised"]
    if text.startswith(HARMLESS):
        return None
    if raised is not None and raised not in EXPECTED_ERRORS | DATABASE_ERRORS:
        return f"{text}\n{record['trace']}"
    return None if record["level"] in ("DEBUG", "INFO", "WARNING") else text


def _or(words: Iterable[str]) -> str:
    return " or ".join(sorted(words))


RULES: tuple[Rule, ...] = (
    money, finished, outcomes, effects, nothing_lost, told, ordered, in_time, quiet,
)  # fmt: skip
