"""
Prints how many interleavings there are, and how many of each broken twin are wrong.

``python -m tests.interleavings [URL of an empty database]``
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from time import monotonic

from sqla_jobs.testing import PostgresServer
from tests.interleavings.channels import CHANNELS
from tests.interleavings.harness import Conductor, Scenario, conducting
from tests.interleavings.holds import HOLDS
from tests.interleavings.keys import KEYS
from tests.interleavings.leases import LEASES
from tests.interleavings.limits import LIMITS


def report(conductor: Conductor, name: str, scenario: Scenario) -> int:
    """Print the lines of a scenario; return how many interleavings it has."""
    began = monotonic()
    found = conductor.explore(scenario)
    seconds = monotonic() - began
    print(f"{name}: {found.count} in {seconds:.1f} s, {len(found.wrong)} wrong")
    for twin in scenario.twins:
        broken = conductor.explore(scenario, twin)
        print(f"    {twin}: {broken.count}, {len(broken.wrong)} wrong", flush=True)
    return found.count


def main() -> None:
    """Run all scenarios and their twins."""
    with ExitStack() as stack:
        given = sys.argv[1:]
        dsn = given[0] if given else stack.enter_context(PostgresServer()).dsn
        conductor = stack.enter_context(conducting(dsn))
        everything = LEASES | HOLDS | KEYS | CHANNELS | LIMITS
        counts = [report(conductor, *one) for one in everything.items()]
    print(f"{sum(counts)} interleavings of {len(counts)} scenarios")


if __name__ == "__main__":
    main()
