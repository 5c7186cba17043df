"""
Measure memory: of 10,000 waiting jobs, and of a bulk enqueue from a generator.

Run ``python -m tests.benchmarks.memory``; each part is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from sqla_jobs import AsyncContext, AsyncRunner, enqueue_many
from tests.benchmarks.growth_kit import Bed, Grow, Job, open_bed

MB = 1_000_000
FLAT = 1.1
"""The last figure by the one at a tenth of the way, at most, to be called flat."""

Samples = list[dict[str, Any]]


def rss() -> float:
    """Return the resident memory of this process in MB."""
    return float(psutil.Process().memory_info().rss) / MB


def sample(what: str, x: float) -> dict[str, Any]:
    """Return the memory in use, once what is garbage is collected."""
    gc.collect()
    return {"at": what, "x": round(x, 1), "mb": round(rss(), 1)}


def bulk(dsn: str, rows: int, _seconds: float) -> Samples:
    """Enqueue *rows* jobs from a generator, in one transaction."""
    bed, samples, start = Bed(dsn), Samples(), time.perf_counter()

    def generate() -> Iterator[dict[str, Any]]:
        for number in range(rows):
            if number % max(1, rows // 20) == 0:
                samples.append(sample("rows given", number))
            yield {"text": f"{number:0180}"}

    with bed.sessions.begin() as session:
        count = enqueue_many(session, Grow, generate())
        samples.append(sample("rows given", count))
    samples.append(sample("committed, s", time.perf_counter() - start))
    bed.close()
    return samples


class Wait(Job, kind="wait"):
    """Waits until all of them may end."""

    async def run(self, ctx: AsyncContext) -> None:
        """Wait."""
        ctx.resources.arrived()
        await ctx.resources.released.wait()


class Gate:
    """Where the jobs wait; *most* of them."""

    def __init__(self, most: int) -> None:
        self._left = most
        self.full, self.released = asyncio.Event(), asyncio.Event()

    def arrived(self) -> None:
        """Count a job that waits from now on."""
        self._left -= 1
        if self._left == 0:
            self.full.set()


def waiting(dsn: str, jobs: int, seconds: float) -> Samples:
    """Have *jobs* jobs wait in one runner for *seconds*, then end."""
    bed = Bed(dsn)
    with bed.sessions.begin() as session:
        enqueue_many(session, Wait, ({} for _ in range(jobs)))
    bed.close()
    return asyncio.run(_waiting(dsn, jobs, seconds))


async def _waiting(dsn: str, jobs: int, seconds: float) -> Samples:
    engine, gate = create_async_engine(dsn), Gate(jobs)
    sessions = async_sessionmaker(engine)
    runner = AsyncRunner(
        sessions, Job, concurrency=jobs, resources=gate, kinds=["wait"]
    )
    samples, start = [sample("before", 0)], time.perf_counter()
    running = asyncio.create_task(runner.run_until_idle())
    full = asyncio.create_task(gate.full.wait())
    await asyncio.wait({running, full}, return_when="FIRST_COMPLETED")
    for _ in range(20):  # leases are renewed meanwhile
        samples.append(sample("waiting, s", time.perf_counter() - start))
        await asyncio.sleep(seconds / 20)
    gate.released.set()
    full.cancel()
    await running
    samples.append(sample("all ended, s", time.perf_counter() - start))
    await engine.dispose()
    return samples


PARTS: dict[str, Callable[[str, int, float], Samples]] = {
    "bulk": bulk,
    "waiting": waiting,
}


def growth(samples: Samples) -> float:
    """Return the last figure of the long part by the one at a tenth of its way."""
    name = max((s["at"] for s in samples), key=[s["at"] for s in samples].count)
    found = [s["mb"] for s in samples if s["at"] == name]
    return float(found[-1] / found[len(found) // 10])


def show(console: Console, name: str, samples: Samples) -> None:
    """Print a part, and whether its memory stays flat."""
    table = Table(title=name)
    for head in ("", "at", "MB"):
        table.add_column(head, justify="right" if head else "left")
    for one in samples:
        table.add_row(one["at"], f"{one['x']:,}", f"{one['mb']:,.1f}")
    console.print(table)
    ratio = growth(samples)
    verdict = "flat" if ratio <= FLAT else "NOT flat"
    console.print(f"{name}: {ratio:.2f} x from a tenth of the way on: {verdict}")


def measure(dsn: str | None, name: str, count: int, seconds: float) -> Samples:
    """Run a part in a new process, on a new database."""
    logging.getLogger("sqla_jobs").setLevel(logging.ERROR)
    with (
        open_bed(dsn) as bed,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        url = bed.engine.url.render_as_string(hide_password=False)
        return pool.submit(PARTS[name], url, count, seconds).result()


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the bulk")
    parser.add_argument("--jobs", type=int, default=10_000, help="that wait")
    parser.add_argument("--seconds", type=float, default=60, help="of waiting")
    parser.add_argument("--json", type=Path, help="file; the other part in it stays")
    parser.add_argument("--dsn", help="a server with pg_stat_statements, to create in")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.jobs, args.seconds = args.rows // 20, args.jobs // 20, 5
    return args


def main() -> None:
    """Measure what is asked for, print it, write it."""
    args, console, failed = arguments(), Console(), False
    old = args.json and args.json.exists()
    parts = json.loads(args.json.read_text())["memory"] if old else {}
    chosen = [args.only] if args.only else list(PARTS)
    with Progress(console=console, transient=True) as progress:
        for name in progress.track(chosen, description="memory"):
            count = args.rows if name == "bulk" else args.jobs
            try:
                parts[name] = measure(args.dsn, name, count, args.seconds)
            except Exception as exc:  # noqa: BLE001 - of one part: the other goes on
                failed = True
                console.print(f"{name} failed: {exc!r}", style="red", markup=False)
                continue
            show(console, f"{name}, {count:,}", parts[name])
            if args.json:
                args.json.write_text(json.dumps({"memory": parts}, indent=1) + "\n")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
