"""What a run of the bank says at its end: tables, the same as data, and stories."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import PROMPT
from tests.chaos.referee import Result, percentile

COLUMNS = {
    "strikes": "strikes",
    "hit": "jobs hit",
    "rescued": "rescued",
    "p50": "recovery p50",
    "p99": "p99",
    "max": "max",
    "lost": "lost",
    "double": "double",
}


def rows(result: Result) -> dict[str, dict[str, Any]]:
    """Return the figures of each nemesis; what no strike hit is in "no strike"."""
    hits: dict[str, set[int]] = {}
    for one in result.history.recoveries:
        hits.setdefault(one.nemesis, set()).add(one.job)
    strikes = Counter(strike.name for strike in result.strikes)
    everyone = set().union(*hits.values()) if hits else set()
    found = {}
    for name in [*sorted(strikes), "no strike"]:
        known = [one for one in result.history.recoveries if one.nemesis == name]
        seconds = [
            one.seconds
            for one in known
            if one.rescued and not one.excused and one.seconds is not None
        ]
        jobs = hits.get(name, set())
        mine = [
            v.rule
            for v in result.violations
            if (v.job in jobs if name in strikes else v.job not in everyone)
        ]
        found[name] = {
            "strikes": strikes[name],
            "hit": len(known),
            "rescued": sum(one.rescued for one in known),
            "p50": percentile(seconds, 0.5),
            "p99": percentile(seconds, 0.99),
            "max": max(seconds, default=None),
            "lost": sum(rule in ("lost", "stuck") for rule in mine),
            "double": mine.count("double"),
        }
    return found


def summary(result: Result) -> dict[str, Any]:
    """Return the figures of the whole run."""
    history = result.history
    entries = [len(one) for one in history.ledger.values()]
    handovers = [
        one.seconds
        for one in history.handovers
        if one.kind in PROMPT and not one.excused
    ]
    return {
        "seconds": round(result.seconds, 1),
        **result.facts,
        "jobs": len(history.jobs),
        "completed": sum(job.state == "completed" for job in history.jobs),
        "cancelled": sum(job.state == "cancelled" for job in history.jobs),
        "attempts that did not complete": dict(
            Counter(one.outcome for one in history.attempts)
        ),
        "effects": len(history.postings),
        "ledger keys": len(entries),
        "ledger entries sent twice or more": sum(one > 1 for one in entries),
        "hand-overs": len(handovers),
        "hand-overs of all kinds": dict(
            Counter(
                f"{one.kind}, excused" if one.excused else one.kind
                for one in history.handovers
            )
        ),
        "hand-over p50": percentile(handovers, 0.5),
        "hand-over max": max(handovers, default=None),
        "deadlocks": sum("deadlock" in v.text for v in result.violations),
        "violations": len(result.violations),
    }


def show(console: Console, result: Result) -> None:
    """Print the tables."""
    table = Table("nemesis", *COLUMNS.values(), title="The bank")
    for name, row in rows(result).items():
        table.add_row(name, *(_cell(row[key]) for key in COLUMNS))
    console.print(table)
    for name, why in result.skipped.items():
        console.print(f"{name} did not strike: {why}")
    for name, value in summary(result).items():
        console.print(f"{name}: {_cell(value)}")
    held = result.limits
    most = f"recovery <= {held.recovery:.2f} s, hand-over <= {held.handover:.2f} s"
    console.print(f"held to: {most}")


def write(path: Path, result: Result) -> None:
    """Write the report: JSON if *path* ends so, else a Markdown table."""
    table, total = rows(result), summary(result)
    if path.suffix == ".json":
        broken = [
            {"rule": v.rule, "job": v.job, "text": v.text} for v in result.violations
        ]
        data = {"nemeses": table, "skipped": result.skipped, "run": total}
        path.write_text(json.dumps(data | {"violations": broken}, indent=2) + "\n")
        return
    lines = ["| nemesis | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for name, row in table.items():
        cells = " | ".join(_cell(row[key]) for key in COLUMNS)
        lines.append(f"| {name} | {cells} |")
    lines += ["", *(f"- {name}: {_cell(value)}" for name, value in total.items())]
    path.write_text("\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if isinstance(value, float) else str(value)
