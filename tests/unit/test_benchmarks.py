"""The benchmark's arithmetic: rounds, pairs, tables and budgets."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.benchmarks.budgets import BUDGETS, Budget, inverse, sheet, to
from tests.benchmarks.environments import (
    PINNED,
    Environments,
    NotInstalled,
    commands,
    module_of,
)
from tests.benchmarks.matrix import (
    OURS,
    PEERS,
    SYSTEMS,
    WORKLOADS,
    chosen,
    steps,
    workload_of,
)
from tests.benchmarks.results import (
    Figure,
    Results,
    Spread,
    paired,
    percentile,
    percentiles,
    waited,
)
from tests.benchmarks.systems.program import WARM_UP, Counter, parts
from tests.benchmarks.tables import (
    best_peer,
    busy_note,
    failures,
    markdown,
    number,
    sheets,
)

ROOT = Path(__file__).parents[2]


def figures(
    entry: str, *rates: float | None, workload: str = "drain-async", run: str = "1"
) -> list[Figure]:
    """Return a figure per round with these rates, beside a calibration of 100."""
    return [
        Figure(
            workload=workload,
            entry=entry,
            run=run,
            round=number,
            count=10,
            calibration=100.0,
            rate=rate,
        )
        for number, rate in enumerate(rates)
    ]


def test_paired_takes_the_median_of_the_ratios_of_each_round() -> None:
    """A ratio is of two figures of one round, whatever the other rounds measured."""
    ours, base = figures("a", 20, 90, 40), figures("b", 10, 30, 40)

    assert paired(ours, base) == Spread(2.0, 1.0, 3.0, 3)


def test_paired_leaves_out_rounds_without_a_partner() -> None:
    """A missing figure, one without a rate and another run are no partners."""
    base = [*figures("b", 10, None), *figures("b", 1, 1, 1, run="2")]

    assert paired(figures("a", 20, 20, 20), base) == Spread(2.0, 2.0, 2.0, 1)
    assert paired(figures("a", 20), []) is None


def test_waited_counts_from_the_call_and_from_its_return() -> None:
    """The first jobs warm up; times are in ms."""
    sent = [(0.0, 0.0)] * WARM_UP + [(1.0, 1.002)] * 100
    told = [9.0] * WARM_UP + [1.005] * 100

    times = waited(sent, told)

    assert times["latency"]["p50"] == pytest.approx(5.0)
    assert times["from_commit"]["p99"] == pytest.approx(3.0)


def test_percentiles_are_values_that_were_measured() -> None:
    """Of one value all are that value; of a hundred they are told apart."""
    assert percentiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0}
    assert percentiles(range(100)) == {"p50": 50, "p95": 95, "p99": 99}


def test_rounds_alternate() -> None:
    """Each other round goes through a workload's entries backward."""
    picked = chosen(["drain-sync"])
    names = [entry.key for entry in picked[0][1]]

    planned = [(step.round, step.entry.key) for step in steps(picked, 3)]

    forward, backward = names, names[::-1]
    expected = [forward, backward, forward]
    assert planned == [(at, key) for at, keys in enumerate(expected) for key in keys]


@pytest.mark.parametrize(
    ("only", "keys"),
    [
        (["drain-async"], {"drain-async"}),
        (["effect"], {"effect"}),
        (["effect-"], {"effect-two"}),
        (["enqueue"], {"enqueue-one", "enqueue-bulk"}),
        (["bare"], {"effect"}),
        (["nothing"], set()),
        ([], {workload.key for workload in WORKLOADS}),
    ],
)
def test_only_chooses_workloads_and_entries(only: list[str], keys: set[str]) -> None:
    """A whole key means that workload, a beginning all that begin so."""
    assert {workload.key for workload, _ in chosen(only)} == keys


def test_systems_choose_entries() -> None:
    """What is left has entries of those systems only."""
    picked = chosen(systems=["pgqueuer"])

    assert {entry.system for _, entries in picked for entry in entries} == {"pgqueuer"}


def test_keys_are_unique_and_programs_exist() -> None:
    """Figures are found by key, and every system has its program."""
    for workload in WORKLOADS:
        keys = [entry.key for entry in workload.entries]
        assert len(set(keys)) == len(keys)
        bases = set(workload.bases) - {"best peer"}
        assert bases <= set(keys) | {"pgqueuer"}
    for system in SYSTEMS:
        assert (ROOT / (module_of(system).replace(".", "/") + ".py")).exists()
    assert set(PINNED) == set(PEERS)


def test_environments_are_pinned() -> None:
    """Another day brings the same versions, by uv or by pip."""
    for wanted in PINNED.values():
        assert all("==" in package for package in wanted)
        made = commands(Path("home"), Path("home/bin/python"), wanted)
        assert made[-1][-len(wanted) :] == list(wanted)


def test_environment_that_cannot_be_made_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is what the installer said; each later figure fails at once."""
    tried = []

    def fail(command: list[str]) -> None:
        tried.append(command)
        raise subprocess.CalledProcessError(1, command, stderr="no such version")

    monkeypatch.setattr("tests.benchmarks.environments.install", fail)
    environments = Environments(tmp_path)

    for _ in range(2):
        with pytest.raises(NotInstalled, match="oban was not installed: no such"):
            environments.python("oban")

    assert len(tried) == 1


def test_busy_machine_is_told() -> None:
    """A quiet one is not."""
    quiet, busy = (
        Figure(**{**vars(figures("a", 1.0)[0]), "elsewhere": share})
        for share in (0.02, 0.4)
    )

    assert busy_note(Results(figures=[busy])).startswith("others used 40% of the CPU")
    assert busy_note(Results(figures=[quiet])) == ""


def test_results_are_read_as_written(tmp_path: Path) -> None:
    """A second run of one entry replaces its figures and leaves the others."""
    results = Results.opened(tmp_path / "figures.json")
    for figure in (*figures("a", 1, 2), *figures("b", 3)):
        results.add(figure)
    results.fail("drain-async", "a", "first\nlast")

    again = Results.opened(tmp_path / "figures.json")

    assert (again.figures, again.failures) == (results.figures, results.failures)
    assert failures(again) == ["drain-async: a: last"]
    again.forget("drain-async", "a")
    assert again.figures == figures("b", 3)
    assert again.failures == []


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    """A file of another format is not taken for an empty one."""
    path = tmp_path / "figures.json"
    path.write_text('{"format": 0}')

    with pytest.raises(ValueError, match="another version"):
        Results.opened(path)


def test_best_peer_has_the_highest_median() -> None:
    """Neither ours nor the raw loops are peers."""
    rates = {OURS: 99, "raw/asyncpg": 99, "oban": 5, "saq": 6, "chancy": 4}
    found = [one for key, rate in rates.items() for one in figures(key, rate)]

    assert best_peer(Results(figures=found), workload_of("drain-async")) == "saq"


def test_tables_hold_rates_ratios_and_marks() -> None:
    """The Markdown has medians with their spread, and a mark at what was cut short."""
    cut = [
        Figure(**{**vars(figure), "finished": False})
        for figure in figures("procrastinate", 5.0, 5.0)
    ]
    found = [*figures(OURS, 40.0, 60.0), *figures("pgqueuer", 20.0, 20.0), *cut]

    speed, cost = map(markdown, sheets(Results(figures=found)))

    assert "| **sqla_jobs** | 50.00 (40.00-60.00) | 0.500 (0.400-0.600) | " in speed
    assert " | 2.50 (2.00-3.00) | " in speed
    assert "| procrastinate † |" in speed
    assert cost.startswith("**drain-async: per job**")


def test_latency_tables_compare_with_pgqueuer() -> None:
    """The time from COMMIT is compared, not that of the enqueue before it."""
    found = [
        Figure(
            workload="latency",
            entry=entry,
            run="1",
            round=0,
            count=1,
            calibration=1.0,
            latency=dict.fromkeys(("p50", "p95", "p99"), 99.0),
            from_commit=dict.fromkeys(("p50", "p95", "p99"), ms),
        )
        for entry, ms in ((OURS, 2.0), ("pgqueuer", 4.0))
    ]

    text = markdown(next(sheets(Results(figures=found))))

    assert "| **sqla_jobs** | 2.00 | 2.00 | 2.00 | 0.500 | 99.00 |" in text
    assert paired(found[:1], found[1:], percentile("p50")) == Spread(0.5, 0.5, 0.5, 1)


def test_numbers_keep_what_tells_something() -> None:
    """Small ones have three digits after the point, large ones none."""
    assert [number(n) for n in (0.0123, 1.234, 1234.5)] == ["0.012", "1.23", "1,234"]


@pytest.mark.parametrize(
    ("at_least", "limit", "met"),
    [(True, 2.0, True), (True, 2.1, False), (False, 2.0, True), (False, 1.9, False)],
)
def test_budget_is_met_by_the_median(at_least: bool, limit: float, met: bool) -> None:
    """The limit itself is still within the budget, on either side."""
    measure = to("w", "a", "b")
    budget = Budget("work", "what", limit, measure, at_least)

    assert budget.met(Spread(2.0, 0.0, 9.0, 3)) is met


def test_inverse_turns_a_ratio_of_rates_into_one_of_times() -> None:
    """The least and the most change places."""
    measure = inverse(lambda _: Spread(0.5, 0.25, 1.0, 3))

    assert measure(Results()) == Spread(2.0, 1.0, 4.0, 3)


def test_budgets_name_entries_that_exist() -> None:
    """With figures for every entry, every budget is measured."""
    times = {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    found = [
        Figure(
            workload=workload.key,
            entry=entry.key,
            run="1",
            round=0,
            count=1,
            calibration=1.0,
            rate=1.0,
            latency=times,
            from_commit=times,
            statements=0.0,
            transactions=0.0,
            wal=1.0,
            client_cpu=1.0,
        )
        for workload in WORKLOADS
        for entry in workload.entries
    ]

    rows = sheet(Results(figures=found)).rows

    assert len(rows) == len(BUDGETS)
    assert {row[-1] for row in rows} == {"met", "not met"}
    assert {row[-1] for row in sheet(Results()).rows} == {"not measured"}


def test_counter_is_read_while_it_counts(tmp_path: Path) -> None:
    """Another process sees runs, the first one's time, and times by number."""
    counting = Counter(tmp_path / "counter", told=3)
    reading = Counter(tmp_path / "counter")

    counting.hit(2)
    counting.tell(1)

    assert reading.runs == 3
    assert 0 < reading.first <= reading.told()[1]
    assert reading.told(1, 2) == reading.told()[1:2]
    assert reading.told()[0] == reading.told()[2] == 0.0


def test_parts_cover_all_numbers_once() -> None:
    """The last part is what is left."""
    cut = parts(range(2500), 1000)

    assert [len(part) for part in cut] == [1000, 1000, 500]
    assert all(one.stop == other.start for one, other in pairwise(cut))
