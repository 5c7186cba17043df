"""The bank on two servers: the primary is killed, again and again."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from sqlalchemy import text

from tests.chaos import report
from tests.chaos.nemesis import NEMESES
from tests.chaos.referee import Referee, Result, percentile
from tests.chaos.scene import Direct, Scene
from tests.failover.pair import Pair, why_not
from tests.failover.timeline import AFTER, BEFORE, Timeline

DONE = text(
    "SELECT extract(epoch FROM finished_at) FROM jobs WHERE state = 'completed'"
)


class PairScene(Scene):
    """The bank on a pair of servers; `kills` says when a primary died (monotonic)."""

    server: Pair

    def new_server(self) -> Pair:
        """Return the pair."""
        self.kills: list[float] = []
        return Pair()


class FailOver:
    """Kills the primary; the other takes over, and gets a new standby."""

    name = "failover"

    def why_not(self, scene: Scene) -> str | None:
        """It can always strike: the scene has two servers."""
        return None

    def strike(self, scene: Scene, rng: random.Random) -> None:
        """Kill the primary, promote the standby, and build a new one."""
        assert isinstance(scene, PairScene)
        scene.kills.append(scene.server.fail_over())
        # The old primary stays away for a while, as it does.
        time.sleep(AFTER)
        scene.server.rebuild()

    def heal(self) -> None:
        """Nothing is left."""


class Bank(Referee):
    """The referee, who also notes when jobs were completed."""

    timeline = Timeline((), ())

    def _drain(self, watch: object, load: object) -> None:
        super()._drain(watch, load)  # type: ignore[arg-type]
        clock = time.time() - time.monotonic()
        with self.scene.engine.connect() as connection:
            done = [float(at) - clock for at in connection.execute(DONE).scalars()]
        assert isinstance(self.scene, PairScene)
        kills = [at - self.start for at in self.scene.kills]
        self.timeline = Timeline([at - self.start for at in done], kills)


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="nox -s failover --", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=30.0, help="how long primaries are killed")
    add("--seed", help="of the load and the pauses; default a new one")
    add("--workers", type=int, default=4, help="processes, one per driver; default 4")
    add("--rate", type=float, default=40.0, help="orders per second; default 40")
    add("--report", type=Path, help="folder for timeline.csv, timeline.svg, bank.json")
    add("--nemesis", nargs="*", default=[], choices=["sigkill", "sigterm"], metavar="X")
    return parser.parse_args(given)


def main(given: Sequence[str]) -> int:
    """Run the bank; return 1 if a promise was broken."""
    console, args = Console(width=110), arguments(given)
    if (reason := why_not()) is not None:
        console.print(reason)
        return 2
    args.seed = args.seed or str(random.SystemRandom().randrange(10**6))
    console.print(f"seed {args.seed}")
    scene = PairScene([Direct() for _ in range(args.workers)], seed=args.seed)
    nemeses = [FailOver(), *(NEMESES[name]() for name in args.nemesis)]
    referee = Bank(scene, nemeses, seconds=args.seconds, rate=args.rate)
    result = referee.run()
    report.show(console, result)
    show(console, referee.timeline)
    if args.report is not None:
        write(args.report, result, referee.timeline)
    for violation in result.violations[:50]:
        console.print(str(violation), style="red", markup=False)
    console.print("\n".join(result.stories), markup=False, highlight=False)
    return 1 if result.violations else 0


def show(console: Console, timeline: Timeline) -> None:
    """Print the timeline."""
    around = f"{BEFORE:g} s before to {AFTER:g} s after"
    console.print(f"jobs completed per 100 ms, {around} each kill of the primary:")
    gaps = []
    for kill in timeline.kills:
        gap = timeline.gap(kill)
        gaps += [] if gap is None else [gap]
        told = "never" if gap is None else f"{gap:.2f} s"
        console.print(f"{timeline.line(kill)}  next after {told}", highlight=False)
    if gaps:
        middle = percentile(gaps, 0.5)
        console.print(f"without a job: p50 {middle:.2f} s, longest {max(gaps):.2f} s")


def write(folder: Path, result: Result, timeline: Timeline) -> None:
    """Write the files of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "timeline.csv").write_text(timeline.csv())
    (folder / "timeline.svg").write_text(timeline.svg())
    report.write(folder / "bank.json", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
