"""Figures as tables: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.benchmarks.matrix import PEERS, WORKLOADS, Entry, Workload
from tests.benchmarks.results import (
    Figure,
    Results,
    Spread,
    Value,
    paired,
    percentile,
    rate,
)

if TYPE_CHECKING:
    from rich.table import Table

NOTHING = "-"
QUIET = 0.1  # of the CPU, used by others


@dataclass(frozen=True)
class Sheet:
    """A table of text; the first column is the entry's name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: float) -> str:
    """Return *value* with as many digits as tell something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def spread(value: Spread | None) -> str:
    """Return the median and, of several rounds, the least and the most."""
    if value is None:
        return NOTHING
    if value.count == 1:
        return number(value.median)
    return f"{number(value.median)} ({number(value.least)}-{number(value.most)})"


def median(value: Spread | None) -> str:
    """Return the median alone."""
    return NOTHING if value is None else number(value.median)


def best_peer(results: Results, workload: Workload, value: Value = rate) -> str | None:
    """Return the key of the peers' entry with the highest median; None if none."""
    found = {
        entry.key: known.median
        for entry in workload.entries
        if entry.system in PEERS
        and (known := results.spread(workload.key, entry.key, value)) is not None
    }
    return max(found, key=found.__getitem__) if found else None


def base_of(results: Results, workload: Workload, base: str) -> str | None:
    """Return the key of a named base."""
    return best_peer(results, workload) if base == "best peer" else base


def sheets(results: Results) -> Iterator[Sheet]:
    """Yield the tables of each workload that has figures."""
    for workload in WORKLOADS:
        known = [
            entry for entry in workload.entries if results.of(workload.key, entry.key)
        ]
        if known and workload.measure == "latency":
            yield latency_sheet(results, workload, known)
        elif known:
            yield rate_sheet(results, workload, known)
        if known:
            yield cost_sheet(results, workload, known)


COSTS: tuple[tuple[str, Callable[[Figure], float | None]], ...] = (
    ("statements", lambda figure: figure.statements),
    ("transactions", lambda figure: figure.transactions),
    ("WAL B", lambda figure: figure.wal),
    ("client ms", lambda figure: figure.client_cpu),
    ("server ms", lambda figure: figure.server_cpu),
)


def rate_sheet(results: Results, workload: Workload, known: Sequence[Entry]) -> Sheet:
    """Return the table of a workload's rates, and of their ratios."""
    atomic = any(entry.atomic is not None for entry in known)
    bases = [base_of(results, workload, base) for base in workload.bases]
    names = [
        column_of(workload, *both) for both in zip(workload.bases, bases, strict=True)
    ]
    rows = []
    for entry in known:
        row = [name_of(results, workload, entry)]
        row += [
            spread(results.spread(workload.key, entry.key, value))
            for value in (rate, of_calibration)
        ]
        row += [
            NOTHING
            if key == entry.key
            else spread(results.ratio(workload.key, entry.key, key or ""))
            for key in bases
        ]
        if atomic:
            row.append({True: "yes", False: "no", None: NOTHING}[entry.atomic])
        rows.append(tuple(row))
    columns = ("", "per second", "/ CAL", *names, *(["atomic"] if atomic else []))
    return Sheet(_title(workload), columns, tuple(rows))


def column_of(workload: Workload, base: str, key: str | None) -> str:
    """Return the head of a column of ratios."""
    entry = workload.entry(key or "")
    name = entry.name if entry is not None else base
    return f"/ best: {name}" if base == "best peer" else f"/ {name}"


def of_calibration(figure: Figure) -> float | None:
    """Return the rate as a part of the calibration's."""
    return figure.of_calibration


def cost_sheet(results: Results, workload: Workload, known: Sequence[Entry]) -> Sheet:
    """Return the table of what a job costs."""
    rows = tuple(
        (
            entry.name,
            *(
                median(results.spread(workload.key, entry.key, value))
                for _, value in COSTS
            ),
        )
        for entry in known
    )
    columns = ("", *(name for name, _ in COSTS))
    return Sheet(f"{workload.key}: per job", columns, rows)


def _title(workload: Workload) -> str:
    return f"{workload.key}: {workload.title}"


def latency_sheet(
    results: Results, workload: Workload, known: Sequence[Entry]
) -> Sheet:
    """Return the table of the times until pick-up."""
    names = ("p50", "p95", "p99")
    columns = [f"{name} ms from COMMIT" for name in names]
    columns += ["p50 / pgqueuer's", *(f"{name} ms from call" for name in names)]
    base = results.of(workload.key, "pgqueuer")
    rows = []
    for entry in known:
        figures = results.of(workload.key, entry.key)
        row = [entry.name]
        row += [spread(Spread.of(map(percentile(name), figures))) for name in names]
        same = entry.key == "pgqueuer"
        ratio = None if same else paired(figures, base, percentile("p50"))
        row.append(spread(ratio))
        for name in names:
            value = percentile(name, of_commit=False)
            row.append(spread(Spread.of(map(value, figures))))
        rows.append(tuple(row))
    return Sheet(_title(workload), ("", *columns), tuple(rows))


def name_of(results: Results, workload: Workload, entry: Entry) -> str:
    """Return an entry's name, with a mark if a drain was not finished in time."""
    figures = results.of(workload.key, entry.key)
    name = entry.name
    if not all(figure.finished for figure in figures):
        name += " †"
    if beyond := sum(figure.beyond for figure in figures):
        name += f" (+{beyond} runs)"
    return name


NOTE = (
    "median (least-most) of the rounds; ratios are of figures of the same round; CAL:"
    " psycopg claims 100 rows and deletes them, right before each figure; †: stopped at"
    " the time limit, the rate is of what was done by then"
)


def rich_table(sheet: Sheet) -> Table:
    """Return *sheet* for the terminal."""
    from rich.table import Table

    table = Table(title=sheet.title, title_justify="left", title_style="bold")
    for name in sheet.columns:
        table.add_column(name, justify="right" if name else "left")
    for row in sheet.rows:
        style = "bold" if row[0].startswith("sqla_jobs") else None
        table.add_row(*row, style=style)
    return table


def markdown(sheet: Sheet) -> str:
    """Return *sheet* as Markdown."""
    lines = [f"**{sheet.title}**", "", _line(sheet.columns)]
    lines.append("|---|" + "---:|" * (len(sheet.columns) - 1))
    for row in sheet.rows:
        ours = row[0].startswith("sqla_jobs")
        lines.append(_line((f"**{row[0]}**" if ours else row[0], *row[1:])))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def document(results: Results, budgets: Sheet) -> str:
    """Return all tables as Markdown, with what they were measured on."""
    found = results.facts
    server = ", ".join(f"{name} {value}" for name, value in found["server"].items())
    where = (
        f"Measured {found['at'][:10]}: Python {found['python']},"
        f" {found['cores']} cores, PostgreSQL with {server}."
    )
    systems = [
        f"{name}: {about_of(one)}" for name, one in found.get("systems", {}).items()
    ]
    parts = [where, *systems, *map(markdown, (budgets, *sheets(results))), NOTE]
    return "\n\n".join(parts)


def about_of(facts: dict[str, Any]) -> str:
    """Return the versions of a system, and how it is set up."""
    versions = ", ".join(f"{name} {one}" for name, one in facts["versions"].items())
    return f"{versions}; {facts['config']}"


def busy_note(results: Results) -> str:
    """Return a warning if the machine did something else as well; else nothing."""
    found = Spread.of(figure.elsewhere for figure in results.figures)
    if found is None or found.median < QUIET:
        return ""
    return f"others used {found.median:.0%} of the CPU: trust no ratio below 1.3"


def failures(results: Results) -> list[str]:
    """Return what went wrong, a line each, once."""
    said = [
        f"{one['workload']}: {one['entry']}: {one['error'].splitlines()[-1]}"
        for one in results.failures
    ]
    return list(dict.fromkeys(said))
