"""Plans of the claims that somebody opted in to: late jobs, patterns, fair queues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from sqla_jobs._core.states import Lane
from sqla_jobs._core.subscriptions import Prefix
from sqla_jobs._store import fair
from sqla_jobs._store.claim import claim_jobs
from sqla_jobs._store.fair import FairAsk, claim_fair
from sqla_jobs._store.take import Ask
from sqla_jobs.models import job_tables
from tests.conformance.factories import LEASE, NOW, SECOND, Base, Job, fill
from tests.conformance.test_plans import EACH_PLAN, Plan, Work, plans

TABLES = job_tables(Job)
MANY = """
INSERT INTO {schema}.jobs (kind, queue, channel, run_at)
SELECT 'work', 'fair', 'c' || lpad((n % 1000)::text, 4, '0'), :now
FROM generate_series(1, 20000) AS n
"""


@pytest.fixture(scope="module")
def big(job_engine: Engine) -> Iterator[Engine]:
    """Yield an engine on a plain queue and a fair one, of 20,000 ready jobs each."""
    schema = job_engine.get_execution_options()["schema_translate_map"][None]
    with Session(job_engine) as session:
        session.execute(insert(TABLES.queues).values(name="fair", fair=True))
        session.execute(text(MANY.format(schema=schema)), {"now": NOW})
        fill(session, 19_000)
        fill(session, 1_000, channel="acme", run_at=NOW - SECOND)
        for lane in (Lane.RETRIED, Lane.RESCUED):
            fill(session, 30, lane=lane)
            fill(session, 500, lane=lane, priority=-1)
        session.commit()
        session.execute(text("ANALYZE"))
        session.commit()
    fair._cursors.clear()
    yield job_engine
    names = ", ".join(f"{schema}.{table.name}" for table in Base.metadata.sorted_tables)
    with job_engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names}"))


def of_runner(queues: Any, *, late: int = 0) -> Work:
    """Return a claim of ten jobs as a runner makes it."""
    return lambda session: claim_jobs(
        session,
        TABLES,
        kinds=["work", "other"],
        queues=queues,
        limit=10,
        lease=LEASE,
        runner_id=uuid4(),
        late=late,
        now=NOW,
    )


def assert_bounded(plan: Plan, index: str, *, rows: int = 60, pages: int = 500) -> None:
    """Check that *plan* reads *index*, only as far as it needs."""
    assert f"{index}_idx" in plan.indexes()
    assert "jobs" not in plan.scanned()
    assert plan.most_rows() <= rows  # no sort of the backlog
    assert plan.buffers <= pages


@EACH_PLAN
@pytest.mark.parametrize("queues", [None, {"default": 10}], ids=["all", "names"])
def test_late_jobs_are_read_by_their_lane(big: Engine, mode: str, queues: Any) -> None:
    """The places of late jobs cost a few rows, not the 20,000 fresh ones before."""
    (plan,) = plans(big, mode, of_runner(queues, late=2))

    assert plan.returned == 10
    assert_bounded(plan, "claim_v1")


@EACH_PLAN
@pytest.mark.parametrize("late", [0, 2])
def test_pair_is_read_by_its_channel(big: Engine, mode: str, late: int) -> None:
    """One channel of 1,000 is read by the index of channels."""
    (plan,) = plans(big, mode, of_runner({("fair", "c0999"): 5}, late=late))
    assert plan.returned == 0  # left to the fair claim

    (plan,) = plans(big, mode, of_runner({("default", "acme"): 10}, late=late))

    assert plan.returned == 10
    assert_bounded(plan, "channels_v1")


@EACH_PLAN
@pytest.mark.parametrize("late", [0, 2])
def test_prefix_reads_the_head_of_each_queue(big: Engine, mode: str, late: int) -> None:
    """The queues of a prefix are found by steps in the claim index."""
    (plan,) = plans(big, mode, of_runner({Prefix("de"): 10}, late=late))

    assert plan.returned == 10
    assert_bounded(plan, "claim_v1")


@EACH_PLAN
def test_fair_claim_reads_its_channels_only(big: Engine, mode: str) -> None:
    """A claim of 20 out of 1,000 channels finds 24 of them and takes one of each."""
    ask = Ask(limit=20, lease=LEASE, now=NOW, kinds=["work"], entities=True)

    def work(session: Session) -> object:
        return claim_fair(session, TABLES, ask, {"fair": FairAsk(20)})

    visit, taking = plans(big, mode, work)

    assert visit.returned == 24
    assert_bounded(visit, "channels_v1", rows=60, pages=200)
    assert taking.returned == 20
    assert_bounded(taking, "channels_v1", rows=60, pages=900)


@EACH_PLAN
def test_jobs_without_a_channel_are_looked_for_in_bounds(
    big: Engine, mode: str
) -> None:
    """At the end of a round the first 1,000 of the queue are read, not all 20,000."""
    ask = Ask(limit=20, lease=LEASE, now=NOW, kinds=["work"], entities=True)

    def work(session: Session) -> object:
        fair._cursors[TABLES, "fair"] = "c0990"
        return claim_fair(session, TABLES, ask, {"fair": FairAsk(20)})

    _, taking = plans(big, mode, work)

    assert taking.returned == 20
    assert_bounded(taking, "channels_v1", rows=1_010, pages=2_500)
