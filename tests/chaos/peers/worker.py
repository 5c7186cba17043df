"""One worker of the peers' bank: `python -m tests.chaos.peers.worker OPTIONS`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys

from tests.chaos.peers.errand import say
from tests.chaos.peers.systems import SYSTEMS, Options

SYSTEM = "CHAOS_SYSTEM"
"""The environment variable with the system's name."""


async def main(options: Options) -> None:
    """Run jobs until the process ends."""
    say("hello", options.name)
    await SYSTEMS[os.environ[SYSTEM]]().work(options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(Options(**json.loads(sys.argv[1]))))
