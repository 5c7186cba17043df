"""What is measured: workloads, the entries of each, and the order of the rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

PEERS = ("pgqueuer", "oban", "chancy", "procrastinate", "saq")
SYSTEMS = ("sqla_jobs", "raw", "bare", *PEERS)
OURS = "sqla_jobs"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """
    One way in which one system does the work.

    Args:
        key: Its name inside of the workload.
        system: The program that does it.
        label: Its name for readers; default the key.
        how: Which of the system's ways; its program knows them.
        kind: Of the jobs: ``noop``, ``effect``, ``batch`` or ``tell``.
        size: Part of the workload's count, so that slow systems take as long as fast
            ones.
        processes: How many run jobs.
        beside: ``scheduled`` or ``finished``: a million such rows in the table.
        atomic: Whether effect and completion commit together; None has no effect.
    """

    key: str
    system: str
    label: str = ""
    how: str = ""
    kind: str = "noop"
    size: float = 1.0
    processes: int = 1
    beside: str = ""
    atomic: bool | None = None

    @property
    def name(self) -> str:
        """Its name for readers."""
        return self.label or self.key


@dataclass(frozen=True, kw_only=True)
class Workload:
    """
    The same work for all entries.

    Args:
        key: Its name on the command line.
        title: Its name for readers.
        measure: How it is measured.
        count: Jobs or rows of an entry with size 1.
        bases: Keys of entries that ratios are printed to, ``best peer`` among them.
    """

    key: str
    title: str
    measure: Literal["enqueue", "drain", "latency"]
    count: int
    entries: tuple[Entry, ...]
    bases: tuple[str, ...] = ("pgqueuer", "best peer")

    def entry(self, key: str) -> Entry | None:
        """Return the entry with this key; None if there is none."""
        return next((one for one in self.entries if one.key == key), None)


@dataclass(frozen=True)
class Step:
    """A figure to be measured."""

    round: int
    workload: Workload
    entry: Entry

    @property
    def name(self) -> str:
        """Its name for readers."""
        return f"{self.workload.key}: {self.entry.name}"


def _ours(how: str, label: str = "", **options: object) -> Entry:
    key = f"{OURS}/{label}" if label else OURS
    name = f"{OURS}, {label}" if label else OURS
    made = Entry(key=key, system=OURS, label=name, how=how)
    return replace(made, **options)  # type: ignore[arg-type]


def _peers(how: str, sizes: dict[str, float], **options: object) -> tuple[Entry, ...]:
    made = (
        Entry(key=system, system=system, how=how, size=size)
        for system, size in sizes.items()
    )
    return tuple(replace(entry, **options) for entry in made)  # type: ignore[arg-type]


def _raw(how: str, label: str, **options: object) -> Entry:
    made = Entry(key=f"raw/{label}", system="raw", label=f"raw: {label}", how=how)
    return replace(made, **options)  # type: ignore[arg-type]


# A drain of each should take a few seconds.
_ASYNC = {"pgqueuer": 1.0, "oban": 0.3, "chancy": 0.4, "procrastinate": 0.2, "saq": 0.2}
_SYNC = {"chancy": 0.1, "procrastinate": 0.15, "saq": 0.15}
_EFFECT = {"pgqueuer": 1.0, "oban": 1.0, "chancy": 0.6, "procrastinate": 0.3}
_EFFECT |= {"saq": 0.3}
_ALL = dict.fromkeys(PEERS, 1.0)
_BULK = {**_ALL, "oban": 0.5, "chancy": 0.5, "saq": 0.2}
_MILLION = {**_ASYNC, "pgqueuer": 0.4, "chancy": 0.2, "saq": 0.1}


def _effect() -> tuple[Entry, ...]:
    ours = (
        _ours("threads", kind="effect", atomic=True),
        _ours("async", "async", kind="effect", atomic=True),
        _ours("threads", "batch", kind="batch", atomic=True, size=4.0),
        _ours("async", "async batch", kind="batch", atomic=True, size=4.0),
    )
    raw = _raw("", "psycopg", kind="effect", atomic=True, size=2.0)
    return (*ours, raw, *_peers("driver", _EFFECT, kind="effect", atomic=False))


def _by_session() -> tuple[Entry, ...]:
    made = _peers("session", _EFFECT, kind="effect", atomic=False)
    return tuple(
        replace(one, key=f"{one.key}/session", label=f"{one.key}, Session")
        for one in made
    )


def _million(beside: str) -> tuple[Entry, ...]:
    return (
        _ours("async", beside=beside),
        _ours("async", "empty table"),
        *_peers("", _MILLION, beside=beside),
    )


def _two(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    return tuple(replace(entry, processes=2) for entry in entries)


_DRAIN = (
    _ours("async"),
    _ours("async-psycopg", "psycopg"),
    _ours("asyncio", "asyncio's own loop"),
    _raw("", "asyncpg"),
    *_peers("", _ASYNC),
)
_BARE = Entry(key="bare", system="bare", label="bare SQLAlchemy loop", how="effect")
_PLAIN_ROW = Entry(
    key="plain-row", system="bare", label="plain 3-column row", how="plain"
)

WORKLOADS: tuple[Workload, ...] = (
    Workload(
        key="enqueue-one",
        title="enqueue, one per transaction",
        measure="enqueue",
        count=3_000,
        entries=(
            _ours("add", "session.add"),
            _ours("enqueue", "enqueue"),
            _ours("core", "Core insert"),
            _PLAIN_ROW,
            _raw("psycopg", "psycopg"),
            _raw("asyncpg", "asyncpg"),
            *_peers("one", _ALL),
        ),
        bases=("plain-row", "raw/psycopg", "pgqueuer", "best peer"),
    ),
    Workload(
        key="enqueue-bulk",
        title="enqueue 20,000 at once",
        measure="enqueue",
        count=20_000,
        entries=(
            _ours("many", "enqueue_many"),
            _ours("add_all", "add_all"),
            _raw("copy", "COPY"),
            _raw("unnest", "unnest"),
            *_peers("bulk", _BULK),
        ),
        bases=("raw/COPY", "pgqueuer", "best peer"),
    ),
    Workload(
        key="drain-async",
        title="run 20,000 no-op async jobs",
        measure="drain",
        count=20_000,
        entries=_DRAIN,
        bases=("raw/asyncpg", "pgqueuer", "best peer"),
    ),
    Workload(
        key="drain-sync",
        title="run 20,000 no-op sync jobs",
        measure="drain",
        count=20_000,
        entries=(_ours("threads"), *_peers("sync", _SYNC)),
        bases=("best peer",),
    ),
    Workload(
        key="effect",
        title="one domain row per job",
        measure="drain",
        count=5_000,
        entries=(_BARE, *_effect(), *_by_session()),
        bases=("bare", "raw/psycopg", "pgqueuer", "best peer"),
    ),
    Workload(
        key="latency",
        title="from enqueue to the handler, idle runner",
        measure="latency",
        count=400,
        entries=(
            _ours("async", kind="tell"),
            _ours("threads", "threads", kind="tell"),
            *_peers("", _ALL, kind="tell"),
        ),
    ),
    Workload(
        key="drain-scheduled",
        title="run no-op async jobs beside 1,000,000 scheduled",
        measure="drain",
        count=20_000,
        entries=_million("scheduled"),
        bases=(f"{OURS}/empty table", "pgqueuer", "best peer"),
    ),
    Workload(
        key="drain-completed",
        title="run no-op async jobs beside 1,000,000 completed",
        measure="drain",
        count=20_000,
        entries=_million("finished"),
        bases=(f"{OURS}/empty table", "pgqueuer", "best peer"),
    ),
    Workload(
        key="drain-two",
        title="run 20,000 no-op async jobs in two processes",
        measure="drain",
        count=20_000,
        entries=_two([_ours("async"), _raw("", "asyncpg"), *_peers("", _ASYNC)]),
        bases=("raw/asyncpg", "pgqueuer", "best peer"),
    ),
    Workload(
        key="effect-two",
        title="one domain row per job, two processes",
        measure="drain",
        count=5_000,
        entries=_two(_effect()),
        bases=("raw/psycopg", "pgqueuer", "best peer"),
    ),
)


def workload_of(key: str) -> Workload:
    """Return the workload with this key."""
    return next(workload for workload in WORKLOADS if workload.key == key)


def chosen(
    only: Sequence[str] = (), systems: Sequence[str] = ()
) -> list[tuple[Workload, tuple[Entry, ...]]]:
    """
    Return the workloads and entries to measure.

    Args:
        only: Keys of workloads or their beginnings, or keys of entries; none means all.
        systems: Their names; none means all.
    """
    picked = []
    for workload in WORKLOADS:
        whole = not only or any(_means(word, workload.key) for word in only)
        entries = tuple(
            entry
            for entry in workload.entries
            if (whole or entry.key in only) and (not systems or entry.system in systems)
        )
        if entries:
            picked.append((workload, entries))
    return picked


def _means(word: str, key: str) -> bool:
    exact = any(workload.key == word for workload in WORKLOADS)
    return key == word if exact else key.startswith(word)


def steps(
    picked: Sequence[tuple[Workload, tuple[Entry, ...]]], rounds: int
) -> Iterator[Step]:
    """Yield every figure of every round; each other round goes backward."""
    for number in range(rounds):
        for workload, entries in picked:
            for entry in entries[:: -1 if number % 2 else 1]:
                yield Step(number, workload, entry)
