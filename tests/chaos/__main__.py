"""The bank: jobs move money while a nemesis strikes; nothing is lost or done twice."""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tests.chaos import report
from tests.chaos.load import RATE
from tests.chaos.nemesis import NEMESES
from tests.chaos.network import NEMESES as NETWORK
from tests.chaos.referee import Referee, Result
from tests.chaos.scene import Direct, Route, Scene

LEAST = 2  # workers on the plain way
ALL = {**NEMESES, **NETWORK}


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="nox -s chaos --", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="how long strikes go on")
    add("--seed", help="of the schedule and the load; default a new one")
    add("--workers", type=int, default=5, help="processes; default 5")
    add("--rate", type=float, default=RATE, help="orders per second")
    add(
        "--nemesis", nargs="*", default=sorted(ALL), choices=sorted(ALL), metavar="NAME"
    )
    add("--report", type=Path, help="file for the tables, .json or Markdown")
    return parser.parse_args(given)


def play(args: argparse.Namespace, console: Console) -> Result:
    """Set the scene and run the game, with a progress bar."""
    scene = Scene(seed=args.seed)
    nemeses = [ALL[name]() for name in args.nemesis]
    usable = [one for one in nemeses if one.why_not(scene) is None]
    own: list[Route] = [r for one in usable for r in getattr(one, "routes", ())]
    own = list(dict.fromkeys(own))
    direct = max(LEAST, args.workers - len(own))
    scene.routes = [*(Direct() for _ in range(direct)), *own]
    columns = ("{task.description}", BarColumn(), "{task.percentage:>3.0f}%")
    with Progress(
        *map(_column, columns), TimeRemainingColumn(), console=console
    ) as bar:
        task = bar.add_task("starting", total=args.seconds)

        def tell(seconds: float, what: str) -> None:
            bar.update(task, completed=seconds, description=what)

        referee = Referee(
            scene, nemeses, seconds=args.seconds, rate=args.rate, tell=tell
        )
        return referee.run()


def _column(given: object) -> TextColumn | BarColumn:
    return TextColumn(given) if isinstance(given, str) else given  # type: ignore[return-value]


def main(given: Sequence[str]) -> int:
    """Run the bank; return 1 if a promise was broken."""
    console, args = Console(width=110), arguments(given)
    args.seed = args.seed or str(random.SystemRandom().randrange(10**6))
    command = ["python", "-m", "tests.chaos", "--seconds", f"{args.seconds:g}"]
    command += ["--seed", args.seed, "--workers", str(args.workers)]
    command += ["--rate", f"{args.rate:g}", "--nemesis", *args.nemesis]
    console.print(f"seed {args.seed}: {', '.join(args.nemesis) or 'no nemesis'}")
    result = play(args, console)
    report.show(console, result)
    if args.report is not None:
        report.write(args.report, result)
    for violation in result.violations[:50]:
        console.print(str(violation), style="red", markup=False)
    console.print("\n".join(result.stories), markup=False, highlight=False)
    console.print(f"to repeat: {shlex.join(command)}", soft_wrap=True)
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
