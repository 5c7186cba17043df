"""The benchmark itself, at a hundredth of its size and without peers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.benchmarks.matrix import OURS, Step, chosen, steps
from tests.benchmarks.results import Figure, Results

if TYPE_CHECKING:
    from tests.benchmarks.measure import Bench

ROOT = Path(__file__).parents[2]


def bench(*arguments: str | Path) -> str:
    """Run the benchmark's command and return what it prints."""
    command = [sys.executable, "-m", "tests.benchmarks", *map(str, arguments)]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Broken:
    """Measures all systems but one."""

    facts: dict[str, object] = {}

    def measure(self, step: Step) -> Figure:
        """Return a figure."""
        if step.entry.system == "saq":
            raise RuntimeError("it does not start")
        return Figure(
            workload=step.workload.key,
            entry=step.entry.key,
            run="1",
            round=step.round,
            count=1,
            calibration=1.0,
            rate=1.0,
        )


def test_benchmark_goes_on_without_a_system_that_fails() -> None:
    """It is tried twice, reported, and left out of the later rounds."""
    pytest.importorskip("rich")
    from rich.console import Console
    from rich.progress import Progress

    from tests.benchmarks.__main__ import measure_all

    todo = list(steps(chosen(["drain-async"], ["saq", "oban"]), 3))
    results, bench = Results(), cast("Bench", Broken())

    with Progress(console=Console(quiet=True)) as progress:
        measure_all(bench, todo, results, progress)

    assert [figure.entry for figure in results.figures] == ["oban"] * 3
    assert [failure["entry"] for failure in results.failures] == ["saq"] * 2


@pytest.mark.slow
@pytest.mark.timeout(300)  # it starts some twenty programs
def test_benchmark_measures_every_kind_of_workload(dsn: str, tmp_path: Path) -> None:
    """A drain, a loop and a latency are measured, kept, and shown by each report."""
    pytest.importorskip("rich")
    file = tmp_path / "figures.json"
    only = ("--systems", "ours,bare", "--only", "drain-two,latency,plain-row")

    said = bench(
        *only, "--dsn", dsn, "--rounds", "1", "--scale", "0.01", "--json", file
    )

    results = Results.read(file)
    assert results.failures == []
    assert [(figure.workload, figure.entry) for figure in results.figures] == [
        ("enqueue-one", "plain-row"),
        ("latency", OURS),
        ("latency", f"{OURS}/threads"),
        ("drain-two", OURS),
    ]
    assert all(figure.finished and not figure.beyond for figure in results.figures)
    assert all(figure.rate or figure.from_commit for figure in results.figures)
    assert "drain-two: run 20,000 no-op async jobs" in said
    assert "/ CAL" in bench("budgets", file)
    assert "| **sqla_jobs** |" in bench("markdown", file)
