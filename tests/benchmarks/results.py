"""Figures, the file that keeps them, and ratios of paired rounds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from tests.benchmarks.systems.program import WARM_UP

FORMAT = 1
Value = Callable[["Figure"], float | None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """
    One measurement.

    Args:
        workload: Its key.
        entry: Key of what was measured.
        run: When the run began that it is part of.
        round: From 0; figures of one run and round are pairs.
        count: Jobs or rows.
        calibration: Rows per second of the raw loop right before.
        finished: Whether all jobs were done in time; if not, *rate* is of those that
            were.
        beyond: Handler runs beyond the number of jobs: 0, or something ran twice.
        rate: Jobs or rows per second.
        latency: Milliseconds from the call, by percentile.
        from_commit: Milliseconds from COMMIT returning, by percentile.
        elsewhere: Share of the machine's CPU that others used meanwhile, 0 to 1.
        client_cpu: Milliseconds per job, as is *server_cpu*.
    """

    workload: str
    entry: str
    run: str
    round: int
    count: int
    calibration: float
    finished: bool = True
    beyond: int = 0
    rate: float | None = None
    latency: dict[str, float] = field(default_factory=dict)
    from_commit: dict[str, float] = field(default_factory=dict)
    statements: float | None = None
    transactions: float | None = None
    wal: float | None = None
    client_cpu: float | None = None
    server_cpu: float | None = None
    elsewhere: float | None = None

    @property
    def of_calibration(self) -> float | None:
        """The rate, as a part of the calibration's."""
        return None if self.rate is None else self.rate / self.calibration


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some values."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """Return that of *values*, without None; None if there is none."""
        known = sorted(value for value in values if value is not None)
        if not known:
            return None
        return cls(statistics.median(known), known[0], known[-1], len(known))


def rate(figure: Figure) -> float | None:
    """Return the rate of a figure."""
    return figure.rate


def percentile(name: str, *, of_commit: bool = True) -> Value:
    """Return what reads a percentile of the time until pick-up, in ms."""
    return lambda figure: (figure.from_commit if of_commit else figure.latency).get(
        name
    )


def paired(
    ours: Sequence[Figure],
    base: Sequence[Figure],
    value: Value = rate,
    *,
    base_value: Value | None = None,
) -> Spread | None:
    """Return the ratio of *ours* to *base*, of the rounds that have both."""
    read = base_value or value
    beside = {(figure.run, figure.round): read(figure) for figure in base}
    ratios = []
    for figure in ours:
        one, other = value(figure), beside.get((figure.run, figure.round))
        if one is not None and other:
            ratios.append(one / other)
    return Spread.of(ratios)


def waited(
    sent: Sequence[tuple[float, float]], told: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return percentiles, in ms, from the call and from its return to the handler."""
    pairs = list(zip(sent, told, strict=True))[WARM_UP:]
    return {
        "latency": percentiles([1000 * (at - call) for (call, _), at in pairs]),
        "from_commit": percentiles([1000 * (at - end) for (_, end), at in pairs]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        f"p{part}": ordered[min(last, len(ordered) * part // 100)]
        for part in (50, 95, 99)
    }


@dataclass
class Results:
    """
    All figures of one file, and what they were measured on.

    Args:
        path: Written after every figure; None keeps nothing.
    """

    path: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    soak: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Return what *path* holds.

        Raises:
            ValueError: If it was written by another version of the benchmark.
        """
        stored = json.loads(path.read_text())
        if stored.get("format") != FORMAT:
            raise ValueError(f"{path} is of another version: measure again")
        known = {one.name for one in fields(Figure)}
        figures = [
            Figure(**{name: one[name] for name in one if name in known})
            for one in stored["figures"]
        ]
        parts = (stored["facts"], figures, stored["failures"], stored["soak"])
        return cls(path, *parts)

    @classmethod
    def opened(cls, path: Path | None) -> Self:
        """Return what *path* holds so far, or what will fill it."""
        return cls.read(path) if path is not None and path.exists() else cls(path)

    def write(self) -> None:
        """Write all to the file, at once or not at all."""
        if self.path is None:
            return
        stored = {
            "format": FORMAT,
            "facts": self.facts,
            "figures": [asdict(figure) for figure in self.figures],
            "failures": self.failures,
            "soak": self.soak,
        }
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(stored, indent=1))
        part.replace(self.path)

    def forget(self, workload: str, entry: str) -> None:
        """Remove what is about to be measured anew."""
        self.figures = [
            figure
            for figure in self.figures
            if (figure.workload, figure.entry) != (workload, entry)
        ]
        self.failures = [
            failure
            for failure in self.failures
            if (failure["workload"], failure["entry"]) != (workload, entry)
        ]

    def add(self, figure: Figure) -> None:
        """Keep a figure."""
        self.figures.append(figure)
        self.write()

    def fail(self, workload: str, entry: str, error: str) -> None:
        """Keep what went wrong."""
        self.failures.append({"workload": workload, "entry": entry, "error": error})
        self.write()

    def of(self, workload: str, entry: str) -> list[Figure]:
        """Return the figures of one entry, in the order of the rounds."""
        return [
            figure
            for figure in self.figures
            if (figure.workload, figure.entry) == (workload, entry)
        ]

    def spread(self, workload: str, entry: str, value: Value = rate) -> Spread | None:
        """Return the spread of one value over the rounds."""
        return Spread.of(map(value, self.of(workload, entry)))

    def ratio(self, workload: str, entry: str, base: str) -> Spread | None:
        """Return the paired ratio of two entries' rates."""
        return paired(self.of(workload, entry), self.of(workload, base))
