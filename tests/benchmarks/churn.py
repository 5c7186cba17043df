"""
Run 1,000,000 jobs through a table that stays small: what it leaves behind.

Run ``python -m tests.benchmarks.churn --jobs 1000000``. Jobs are enqueued, claimed,
completed and deleted by retention in batches, with autovacuum on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import text

from sqla_jobs import enqueue_many
from sqla_jobs._core.limits import NO_FEATURES
from sqla_jobs._store.retention import apply_retention
from tests.benchmarks.growth_kit import TABLES, Bed, Grow, open_bed

MB = 1_000_000
STATE = """
SELECT pg_relation_size(c.oid) AS heap, pg_indexes_size(c.oid) AS indexes,
       c.reltuples::bigint AS rows, s.n_dead_tup AS dead,
       s.n_tup_upd AS updates, s.n_tup_hot_upd AS hot,
       s.autovacuum_count AS vacuums,
       (pg_current_wal_insert_lsn() - '0/0')::bigint AS wal
FROM pg_class c JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE c.relname = 'growth_jobs'
"""
SIZES = """
SELECT i.indexrelname AS name, pg_relation_size(i.indexrelid) AS size
FROM pg_stat_user_indexes i WHERE i.relname = 'growth_jobs' ORDER BY size DESC
"""
OURS = "growth_jobs_"
HOT = """
SELECT n_tup_upd AS updates, n_tup_hot_upd AS hot
FROM pg_stat_user_tables WHERE relname = 'growth_jobs'
"""
Row = dict[str, Any]


class Churn:
    """Runs jobs through *bed* and notes what the table becomes."""

    def __init__(self, bed: Bed, *, batch: int, keep: int) -> None:
        self.bed, self.batch, self.keep = bed, batch, keep
        self.done = self._finished = 0

    def run(self, count: int) -> None:
        """Run *count* jobs: enqueue, claim, settle, delete, a batch at a time."""
        target = self.done + count
        while self.done < target:
            size = min(self.batch, target - self.done)
            with self.bed.sessions.begin() as session:
                enqueue_many(session, Grow, ({} for _ in range(size)))
            self.bed.work(size)
            self.done += size
            self._finished += size
            if self._finished >= self.keep:
                self._retain()

    def _retain(self) -> None:
        # As the sweep of a runner does, once the finished ones are old enough.
        later = datetime.now(UTC) + timedelta(days=2)
        removed = 1
        while removed:
            with self.bed.sessions.begin() as session:
                removed = apply_retention(session, TABLES, limit=1_000, now=later)
        self._finished = 0

    def look(self) -> Row:
        """Return sizes and counters, once the statistics have been written."""
        at = time.monotonic()
        flush(self.bed)
        with self.bed.engine.connect() as connection:
            row = connection.execute(text(STATE)).mappings().one()
        return {"jobs": self.done, "at": at, "back": time.monotonic(), **row}


def measure(churn: Churn, jobs: int, step: int) -> Iterator[Row]:
    """Yield what each *step* of jobs did, beginning with the empty table."""
    before = churn.look()
    yield _between(before, before, 1)
    while churn.done < jobs:
        churn.run(min(step, jobs - churn.done))
        after = churn.look()
        yield _between(before, after, after["jobs"] - before["jobs"])
        before = after


def _between(before: Row, after: Row, jobs: int) -> Row:
    updates = after["updates"] - before["updates"]
    seconds = max(0.0, after["at"] - before["back"])
    return {
        "jobs": after["jobs"],
        "heap_mb": round(after["heap"] / MB, 2),
        "indexes_mb": round(after["indexes"] / MB, 2),
        "dead": after["dead"],
        "hot_share": round((after["hot"] - before["hot"]) / max(1, updates), 3),
        "wal_per_job": round((after["wal"] - before["wal"]) / jobs),
        "vacuums": after["vacuums"],
        "jobs_per_second": round(jobs / seconds) if seconds else 0,
    }


def hot_of_each_update(
    bed: Bed, fillfactor: int, name: str, without: Sequence[str]
) -> Row:
    """
    Return the share of HOT updates of 2,000 claims and of as many settles.

    Args:
        name: What *without* is called in the table.
        without: Indexes that are dropped for the answer.
    """
    bed.clear()
    bed.run(f"ALTER TABLE growth_jobs SET (fillfactor = {fillfactor})")
    with bed.engine.begin() as connection:
        for index in without:
            connection.execute(text(f"DROP INDEX {OURS}{index}_v1_idx"))
    bed.fill(2_000)
    bed.vacuum()
    shares, size = [], bed.run("SELECT pg_relation_size('growth_jobs')")
    for part in ("claim", "settle"):
        before = _hot(bed)
        _only(bed, part)
        after = _hot(bed)
        updates = after["updates"] - before["updates"]
        shares.append((after["hot"] - before["hot"]) / max(1, updates))
    return {
        "fillfactor": fillfactor,
        "dropped": name,
        "claim_hot": round(shares[0], 3),
        "settle_hot": round(shares[1], 3),
        "heap_mb_before": round(size / MB, 2),
        "heap_mb": round(bed.run("SELECT pg_relation_size('growth_jobs')") / MB, 2),
    }


def _only(bed: Bed, part: str) -> None:
    claimer = bed.claimers[0]
    if part == "settle":
        claimer.settle()
        return
    for _ in range(4):
        claimer.claim(500, None, NO_FEATURES)


def flush(bed: Bed) -> None:
    """Have what the server counted written: a backend does so when it ends."""
    bed.engine.dispose()
    time.sleep(0.5)


def _hot(bed: Bed) -> Row:
    flush(bed)
    with bed.engine.connect() as connection:
        return dict(connection.execute(text(HOT)).mappings().one())


STATES = ("claim", "channels", "leases", "ordered", "heads", "blocked", "holds", "due")
ALL = (*STATES, "group", "unique", "finished")
VARIANTS: tuple[tuple[int, str, Sequence[str]], ...] = (
    (100, "none", ()),
    (70, "none", ()),
    (40, "none", ()),
    (40, "leases", ("leases",)),
    (40, "claim, leases", ("claim", "leases")),
    *((40, f"all but {name}", [n for n in ALL if n != name]) for name in ALL),
    (40, "all", ALL),
    (100, "all", ALL),
)
"""Fill factors, and sets of indexes without which an update might be HOT."""


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Print *rows*, whose keys are the heads."""
    table = Table(title=title)
    for head in rows[0]:
        table.add_column(head.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.churn")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--step", type=int, default=50_000, help="jobs per line")
    parser.add_argument("--batch", type=int, default=500, help="jobs at a time")
    parser.add_argument("--keep", type=int, default=10_000, help="finished jobs kept")
    parser.add_argument("--no-hot", action="store_true", help="leave out fill factors")
    parser.add_argument("--json", type=Path, help="file")
    parser.add_argument("--dsn", help="a server with pg_stat_statements, to create in")
    args = parser.parse_args()
    if min(args.jobs, args.step, args.batch, args.keep) < 1:
        parser.error("--jobs, --step, --batch and --keep must be 1 or more")
    return args


def write(path: Path | None, found: Row) -> None:
    """Write what is known so far."""
    if path is not None:
        path.write_text(json.dumps({"churn": found}, indent=1) + "\n")


def run(args: argparse.Namespace, progress: Progress) -> Row:
    """Run the jobs, then the variants, each on a database of its own."""
    found: Row = {"steps": [], "hot": [], "indexes": {}}
    bar = progress.add_task("jobs", total=args.jobs)
    with open_bed(args.dsn) as bed:
        churn = Churn(bed, batch=args.batch, keep=args.keep)
        for row in measure(churn, args.jobs, args.step):
            found["steps"].append(row)
            progress.update(bar, completed=row["jobs"])
            write(args.json, found)
        with bed.engine.connect() as connection:
            for name, size in connection.execute(text(SIZES)):
                found["indexes"][name] = size
    for variant in [] if args.no_hot else VARIANTS:
        with open_bed(args.dsn, autovacuum=False) as bed:
            found["hot"].append(hot_of_each_update(bed, *variant))
        write(args.json, found)
    return found


def main() -> None:
    """Run it, print what the table became, write it."""
    args, console = arguments(), Console()
    with Progress(console=console, transient=True) as progress:
        found = run(args, progress)
    show(console, f"{args.jobs:,} jobs through a table", found["steps"])
    sizes = [{"index": n, "bytes": size} for n, size in found["indexes"].items()]
    show(console, "indexes at the end", sizes)
    if found["hot"]:
        show(console, "which updates are HOT", found["hot"])


if __name__ == "__main__":
    main()
