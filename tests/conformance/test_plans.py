"""Plans: the hot statements read their index and stop early, whatever else is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.orm import Session

from sqla_jobs._core.settle import Settlement
from sqla_jobs._store.base import execute
from sqla_jobs._store.claim import claim, claim_jobs
from sqla_jobs._store.counts import counts
from sqla_jobs._store.holds import confirm_hold, expire_holds
from sqla_jobs._store.lease import renew_many
from sqla_jobs._store.operate import request_cancel, requeue
from sqla_jobs._store.retention import _archiving, apply_retention
from sqla_jobs._store.settle import settle
from sqla_jobs._store.sweep import rescue, stage
from sqla_jobs.models import job_tables
from tests.conformance.factories import DAY, LEASE, NOW, SECOND, Base, Job, fill

TABLES = job_tables(Job)
EACH_PLAN = pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
Work = Callable[[Session], object]
_dialect: Any = PGDialect_psycopg
DIALECT = _dialect(paramstyle="numeric_dollar")


@dataclass
class Plan:
    """What EXPLAIN ANALYZE says of one statement."""

    nodes: list[dict[str, Any]]
    buffers: int
    returned: int

    def indexes(self) -> set[str]:
        """Return the indexes of the jobs table that are read, without its name."""
        names = {node.get("Index Name", "") for node in self.nodes}
        return {name.removeprefix("jobs_") for name in names if name[:5] == "jobs_"}

    def scanned(self) -> set[str]:
        """Return the tables that are read from end to end."""
        seq = [node for node in self.nodes if node["Node Type"] == "Seq Scan"]
        return {node["Relation Name"] for node in seq}

    def most_rows(self) -> int:
        """Return the most rows that any node made or threw away."""
        seen = [node.get("Rows Removed by Filter", 0) for node in self.nodes]
        made = [node["Actual Rows"] for node in self.nodes]
        loops = [node["Actual Loops"] for node in self.nodes]
        each = zip(made, seen, loops, strict=True)
        return max(int((rows + removed) * times) for rows, removed, times in each)


@pytest.fixture(scope="module")
def big(job_engine: Engine) -> Iterator[Engine]:
    """Yield an engine on 20,000 ready jobs beside 100,000 that are not."""
    with Session(job_engine) as session:
        fill(session, 20_000)
        for state in ("scheduled", "completed"):
            at = NOW + DAY if state == "scheduled" else NOW
            ended = NOW if state == "completed" else None
            fill(session, 50_000, state=state, run_at=at, finished_at=ended)
        lease = {"lease_token": 1, "attempt": 1}
        fill(session, 1_000, state="running", leased_until=NOW + DAY, **lease)
        fill(session, 300, state="running", leased_until=NOW - SECOND, **lease)
        fill(session, 300, state="retryable", run_at=NOW - SECOND)
        fill(session, 300, state="held", held_until=NOW - SECOND)
        fill(session, 2_000, state="held", held_until=NOW + DAY)
        fill(session, 300, state="completed", finished_at=NOW - 9 * DAY)
        session.commit()
        session.execute(text("ANALYZE"))
        session.commit()
    yield job_engine
    schema = job_engine.get_execution_options()["schema_translate_map"][None]
    names = ", ".join(f"{schema}.{table.name}" for table in Base.metadata.sorted_tables)
    with job_engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names}"))


def plans(engine: Engine, mode: str, work: Work) -> list[Plan]:
    """Explain each statement of *work* as a prepared one under a plan cache mode."""
    if engine.dialect.driver != "psycopg":
        pytest.skip("the same statements, explained through psycopg")
    with Session(engine) as session:
        connection, seen = session.connection(), list[Any]()

        def note(*args: Any) -> None:
            if args[1].is_select or args[1].is_dml:  # no SAVEPOINT
                seen.append((args[1], args[3]))

        event.listen(connection, "before_execute", note)
        savepoint = session.begin_nested()
        work(session)
        savepoint.rollback()
        event.remove(connection, "before_execute", note)
        session.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        return [_explained(session, *one) for one in seen]


def _explained(session: Session, statement: Any, params: dict[str, Any]) -> Plan:
    schemas = session.connection().get_execution_options()["schema_translate_map"]
    compiled = statement.compile(
        dialect=DIALECT,
        column_keys=list(params),
        schema_translate_map=schemas,
        render_schema_translate=True,
    ).construct_expanded_state(params)
    driver: Any = session.connection().connection.driver_connection
    name, values = f"plan_{uuid4().hex}", compiled.positional_parameters
    # SQLAlchemy casts no intervals: the driver says what they are.
    given = ["interval" if isinstance(v, timedelta) else "unknown" for v in values]
    types = f"({', '.join(given)})"
    prepare = f"PREPARE {name} {types} AS {compiled.statement}"
    driver.execute(prepare.encode(), prepare=False)
    cursor = psycopg.ClientCursor(driver)
    marks = ", ".join(["%s"] * len(values))
    explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name}({marks})"
    cursor.execute(explain.encode(), values)
    row: Any = cursor.fetchone()
    root = row[0][0]["Plan"]
    buffers = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
    return Plan(list(_nodes(root)), buffers, root["Actual Rows"])


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def _mapped(session: Session) -> object:
    return claim_jobs(
        session,
        TABLES,
        kinds=["work", "other"],
        queues={"default": 10, "mail": 4},
        limit=10,
        lease=LEASE,
        runner_id=uuid4(),
        now=NOW,
    )


CLAIMS: dict[str, Work] = {
    "all": lambda session: claim(session, Job, limit=10, now=NOW),
    "queues": lambda session: claim(session, Job, queues=["default", "x"], limit=10),
    "kinds": lambda session: claim(session, Job, kinds=["work"], limit=10, now=NOW),
    "mapped": _mapped,
}


@EACH_PLAN
@pytest.mark.parametrize("work", CLAIMS.values(), ids=CLAIMS)
def test_claim_reads_the_head_of_its_index(big: Engine, mode: str, work: Work) -> None:
    """A claim of 10 out of 20,000 reads the claim index and stops at the limit."""
    (plan,) = plans(big, mode, work)

    assert plan.returned == 10
    assert "claim_v1_idx" in plan.indexes()
    assert "jobs" not in plan.scanned()
    assert plan.most_rows() <= 40  # no sort of the backlog
    assert plan.buffers <= 400


@EACH_PLAN
def test_stage_reads_the_due_index(big: Engine, mode: str) -> None:
    """Staging a batch reads what is due, not the 50,000 that are not."""
    (plan,) = plans(big, mode, lambda session: stage(session, Job, limit=50, now=NOW))

    # The last two say whether ordered or held jobs exist, by one entry each.
    others = {"heads_v1_idx", "holds_v1_idx"}
    assert plan.indexes() == {"due_v1_idx", "pkey", *others}
    assert "jobs" not in plan.scanned()
    assert plan.most_rows() <= 110


@EACH_PLAN
def test_rescue_reads_the_leases_index(big: Engine, mode: str) -> None:
    """A sweep reads expired leases, not the ones that hold."""
    (plan,) = plans(big, mode, lambda session: rescue(session, Job, limit=50, now=NOW))

    assert plan.returned == 50
    assert plan.indexes() == {"leases_v1_idx", "pkey"}
    assert "jobs" not in plan.scanned()
    assert plan.most_rows() <= 400  # the 300 that expired, at worst


@EACH_PLAN
def test_expiry_reads_the_holds_index(big: Engine, mode: str) -> None:
    """A sweep reads the holds that are over, not the 2,000 that are not."""
    (plan,) = plans(big, mode, lambda session: expire_holds(session, TABLES, now=NOW))

    assert plan.indexes() == {"holds_v1_idx", "pkey"}
    assert "jobs" not in plan.scanned()
    assert plan.most_rows() <= 310


@EACH_PLAN
def test_confirmation_reads_by_id(big: Engine, mode: str) -> None:
    """It looks up the ids that are given, and no other held jobs."""
    query = text("SELECT id FROM jobs WHERE held_until > :now LIMIT 5")
    with Session(big) as session:
        schemas = session.connection().get_execution_options()["schema_translate_map"]
        session.execute(text(f"SET LOCAL search_path TO {schemas[None]}"))
        ids = list(session.scalars(query, {"now": NOW}))

    (plan,) = plans(big, mode, lambda session: confirm_hold(session, Job, ids, now=NOW))

    assert plan.returned == 5
    assert plan.indexes() == {"pkey"}
    assert "jobs" not in plan.scanned()


@EACH_PLAN
def test_idle_sweeps_are_cheap(big: Engine, mode: str) -> None:
    """With nothing expired or due a sweep reads a handful of pages."""
    now = NOW - DAY
    idle = plans(big, mode, lambda session: rescue(session, Job, now=now))
    idle += plans(big, mode, lambda session: stage(session, Job, now=now))

    assert all(plan.buffers <= 20 for plan in idle)


@EACH_PLAN
def test_retention_reads_the_finished_index(big: Engine, mode: str) -> None:
    """Retention reads what is old enough, not the 50,000 that are younger."""
    found = plans(
        big, mode, lambda session: apply_retention(session, TABLES, limit=50, now=NOW)
    )

    assert len(found) == 4
    for plan in found:
        assert "finished_v1_idx" in plan.indexes()
        assert "jobs" not in plan.scanned()
        assert plan.most_rows() <= 400


def held_jobs(session: Session) -> list[tuple[int, int]]:
    """Return ids and tokens of 100 running jobs."""
    query = text("SELECT id FROM jobs WHERE state = 'running' ORDER BY id LIMIT 100")
    schema = session.connection().get_execution_options()["schema_translate_map"][None]
    session.execute(text(f"SET LOCAL search_path TO {schema}"))
    return [(job, 1) for job in session.scalars(query)]


@EACH_PLAN
def test_batches_read_their_rows_only(big: Engine, mode: str) -> None:
    """A settle and a renewal of 100 touch no other rows than the running ones."""
    with Session(big) as session:
        held = held_jobs(session)
    rows = [Settlement(job, token, "retry", delay=1.0) for job, token in held]

    (settling,) = plans(big, mode, lambda session: settle(session, TABLES, rows))
    (renewing,) = plans(
        big, mode, lambda session: renew_many(session, TABLES, held, lease=LEASE)
    )

    for plan in (settling, renewing):
        assert plan.returned == 100
        assert "jobs" not in plan.scanned()
        assert plan.most_rows() <= 5_000  # the running ones, hashed, at worst


@EACH_PLAN
def test_operators_read_by_id_and_key(big: Engine, mode: str) -> None:
    """Cancel and requeue of a few jobs look up ids and unique keys, nothing else."""
    with Session(big) as session:
        schemas = session.connection().get_execution_options()["schema_translate_map"]
        session.execute(text(f"SET LOCAL search_path TO {schemas[None]}"))
        final = "SELECT id FROM jobs WHERE state = 'completed' LIMIT 5"
        ids = list(session.scalars(text(final)))

    def work(session: Session) -> None:
        request_cancel(session, Job, ids)
        requeue(session, Job, [*ids, 999_999_999])

    for plan in plans(big, mode, work):
        assert "jobs" not in plan.scanned()
        assert plan.buffers <= 600


@EACH_PLAN
@pytest.mark.parametrize("way", ["unique_key", "fingerprint"])
def test_cancel_by_key_reads_its_index(big: Engine, mode: str, way: str) -> None:
    """A cancel by a key reads the live jobs that have one, no others."""
    key: dict[str, Any] = {way: "k"}

    (plan,) = plans(big, mode, lambda session: request_cancel(session, Job, **key))

    index = {"unique_key": "unique_v1_idx", "fingerprint": "group_v1_idx"}[way]
    assert index in plan.indexes()
    assert "jobs" not in plan.scanned()
    assert plan.buffers <= 20


@EACH_PLAN
def test_counts_read_a_part_of_each_index(big: Engine, mode: str) -> None:
    """However many jobs there are, only the first ones of each state are read."""
    (plan,) = plans(big, mode, lambda session: counts(session, Job, at_most=500))

    assert plan.indexes() >= {
        "claim_v1_idx",
        "due_v1_idx",
        "leases_v1_idx",
        "finished_v1_idx",
    }
    assert "jobs" not in plan.scanned()
    assert plan.most_rows() <= 1_100
    assert plan.buffers <= 3_000
    kinds = {node.get("Index Name"): node["Node Type"] for node in plan.nodes}
    assert kinds["jobs_claim_v1_idx"] == "Index Only Scan"


def test_counts_seem_too_cheap_to_be_compiled(big: Engine) -> None:
    """PostgreSQL's JIT would take seconds for what is read in milliseconds."""
    (plan,) = plans(big, "force_custom_plan", lambda session: counts(session, Job))

    assert plan.nodes[0]["Total Cost"] < 100_000  # jit_above_cost


@EACH_PLAN
def test_archiving_reads_the_finished_index(big: Engine, mode: str) -> None:
    """What is old enough is moved by the index; the archive is asked by its key."""
    params = {
        "state": "completed",
        "age": DAY,
        "kinds": ["work"],
        "limit": 50,
        "now": NOW,
    }

    def work(session: Session) -> None:
        execute(session, TABLES, partial(_archiving, own=()), params)

    (plan,) = plans(big, mode, work)

    assert "finished_v1_idx" in plan.indexes()
    assert "jobs" not in plan.scanned()
    assert plan.most_rows() <= 400
