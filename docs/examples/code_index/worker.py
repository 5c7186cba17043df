"""A process that runs the jobs: start as many as there are cores."""

from __future__ import annotations

import logging
import os
from datetime import timedelta

import jobs  # noqa: F401 - maps the kinds of jobs
from models import Job
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from sqla_jobs import Runner

THREADS = 4


def make_runner() -> Runner:
    """Return a runner of the application's jobs, as `sqla-jobs run` wants it."""
    engine = create_engine(os.environ["CODE_INDEX_DSN"], pool_size=THREADS)
    # The shortest lease there is, to see crashed runners' jobs rescued soon. The
    # default of 30 s is better for a service; neither limits how long jobs may run.
    lease = timedelta(seconds=3)
    return Runner(sessionmaker(engine), Job, concurrency=THREADS, lease=lease)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    make_runner().run()
