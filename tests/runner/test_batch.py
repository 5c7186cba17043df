"""Batch handlers: many jobs, one transaction, and what becomes of each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from sqla_jobs import Cancel, Discard, JobValueError, Retry, Snooze
from sqla_jobs.handlers import Handler
from tests.runner.harness import (
    Effect,
    Job,
    Kit,
    Task,
    answerless_commit,
    effects,
    ok,
)

HOUR = timedelta(hours=1)
WIDE = {"concurrency": 200}


def tasks(count: int, **values: Any) -> list[Task]:
    """Return jobs numbered from 0."""
    return [Task(n=n, **values) for n in range(count)]


def steal(kit: Kit, job_id: int) -> None:
    """Give a job to a new holder, as a rescue and a claim would."""
    kit.sql("UPDATE jobs SET lease_token = lease_token + 1 WHERE id = :id", id=job_id)


def test_batch_is_one_call_and_one_transaction(kit: Kit) -> None:
    """All jobs of a claim come at once; effects and outcomes are one commit."""
    sizes: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> Any:
        sizes.append(len(jobs))
        for job in jobs:
            effects(ctx.session, job, f"job {job.n}")
        return {job: {"n": job.n} for job in jobs}

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(10))

    kit.drain(**WIDE)

    assert sizes == [10]
    assert kit.notes() == [f"job {n}" for n in range(10)]
    assert set(kit.states()) == {"completed"}
    assert [kit.job(one).result for one in ids] == [{"n": n} for n in range(10)]
    assert kit.sql("SELECT count(DISTINCT xmin::text) FROM effects") == 1
    assert kit.sql("SELECT count(DISTINCT xmin::text) FROM jobs") == 1
    same = "SELECT (SELECT min(xmin::text) FROM effects) = min(xmin::text) FROM jobs"
    assert kit.sql(same)


def test_batch_is_at_most_as_large_as_its_class_says(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one claim returned is cut into batches, in the order of the claim."""
    options = replace(Task.__job_options__, batch=3)
    monkeypatch.setattr(Task, "__job_options__", options)
    seen: list[list[int]] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        seen.append([job.n for job in jobs])

    kit.handle(run_many, many=True)
    kit.add(*tasks(7))

    kit.drain(**WIDE)

    assert sorted(seen) == [[0, 1, 2], [3, 4, 5], [6]]
    assert set(kit.states()) == {"completed"}


def test_jobs_of_a_batch_have_outcomes_of_their_own(kit: Kit) -> None:
    """A mapping says what becomes of each, by job or id; the others are done."""

    async def run_many(jobs: Any, ctx: Any) -> Any:
        a, b, c, d, _e = jobs
        effects(ctx.session, a, "kept")
        return {
            a: Snooze(after=HOUR),
            b.id: Cancel("not wanted"),
            c: Discard("never"),
            d.id: Retry("later", after=HOUR),
        }

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(5))

    kit.drain(**WIDE)

    rows = [kit.job(one) for one in ids]
    assert [row.state for row in rows] == [
        "scheduled",
        "cancelled",
        "discarded",
        "retryable",
        "completed",
    ]
    assert [row.attempt for row in rows] == [0, 1, 1, 1, 1]
    assert rows[1].reason == "not wanted"
    assert kit.notes() == ["kept"]


BAD: dict[str, Callable[[Any, Any], Any]] = {}


def bad(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Register a way in which a job spoils its batch."""
    BAD[function.__name__] = function
    return function


@bad
def raises(job: Any, ctx: Any) -> Any:
    """Raise an error."""
    raise ValueError("bad job")


@bad
def does_not_flush(job: Any, ctx: Any) -> Any:
    """Break a constraint, which the commit finds out."""
    ctx.session.add(Effect(job_id=None))


@bad
def has_no_json(job: Any, ctx: Any) -> Any:
    """Return what no row can hold."""
    return {job: object()}


@bad
def means_another(job: Any, ctx: Any) -> Any:
    """Return an outcome for a job of somebody else."""
    return {job.id + 1_000: None}


@bad
def returns_a_list(job: Any, ctx: Any) -> Any:
    """Return no mapping."""
    return [None]


@pytest.mark.parametrize("how", BAD)
def test_bad_job_does_not_sink_its_batch(
    kit: Kit, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The batch is rolled back and each job runs alone in the same attempt; only the bad
    one has failed.
    """
    sizes: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> Any:
        sizes.append(len(jobs))
        answer = None
        for job in jobs:
            job.tags = [f"run {len(sizes)}"]
            effects(ctx.session, job, f"job {job.n}")
            if job.n == 2:
                answer = BAD[how](job, ctx)
        return answer

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(5, max_attempts=1))

    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.drain(**WIDE)

    assert sizes == [5, 1, 1, 1, 1, 1]
    done = "completed"
    assert kit.states() == [done, done, "discarded", done, done]
    assert sorted(kit.notes()) == ["job 0", "job 1", "job 3", "job 4"]
    rows = [kit.job(one) for one in ids]
    assert [row.attempt for row in rows] == [1] * 5
    tags = [["run 2"], ["run 3"], None, ["run 5"], ["run 6"]]
    assert [row.tags for row in rows] == tags
    assert [bool(row.last_error) for row in rows] == [False, False, True, False, False]
    assert [len(kit.attempts(one)) for one in ids] == [0, 0, 1, 0, 0]
    assert "a batch of 5 jobs (task) failed, they run one by one" in caplog.text


@pytest.mark.read_committed("its transaction locks the job elsewhere")
def test_job_that_was_taken_over_takes_no_other_with_it(kit: Kit) -> None:
    """The fence checks all tokens in the commit: a lost one rolls the batch back."""
    stolen: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        for job in jobs:
            effects(ctx.session, job, f"job {job.n}")
        if not stolen:
            await ok(ctx.session.flush())
            stolen.append(jobs[1].id)
            steal(kit, stolen[0])

    kit.handle(run_many, many=True)
    kit.add(*tasks(3))

    kit.drain(**WIDE)

    assert sorted(kit.notes()) == ["job 0", "job 2"]
    assert kit.states() == ["completed", "running", "completed"]


def test_job_lost_while_another_runs_alone_is_left_out(kit: Kit) -> None:
    """After a failure the rows are read again: a job of a new holder does not run."""
    ran: list[list[int]] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        ran.append([job.n for job in jobs])
        if len(jobs) > 1:
            steal(kit, jobs[1].id)
            raise ValueError

    kit.handle(run_many, many=True)
    kit.add(*tasks(3))

    kit.drain(**WIDE)

    assert ran == [[0, 1, 2], [0], [2]]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("hidden", [True, False], ids=["hidden", "raised"])
def test_commit_of_the_handlers_own_is_refused(
    kit: Kit, count: int, hidden: bool
) -> None:
    """A batch has one commit, the runner's; hiding the error does not help."""

    async def run_many(jobs: Any, ctx: Any) -> None:
        for job in jobs:
            effects(ctx.session, job, "half")
        try:
            await ok(ctx.session.commit())
        except JobValueError:
            if not hidden:
                raise

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(count, max_attempts=1))

    kit.drain(**WIDE)

    assert kit.states() == ["discarded"] * count
    assert kit.notes() == []
    for one in ids:
        assert "run_many() may not commit" in kit.job(one).last_error


def test_savepoints_of_a_batch_are_its_own_business(kit: Kit) -> None:
    """A savepoint around each job lets the handler drop one itself."""

    async def run_many(jobs: Any, ctx: Any) -> Any:
        for job in jobs:
            savepoint = await ok(ctx.session.begin_nested())
            effects(ctx.session, job, f"job {job.n}")
            await ok(ctx.session.flush())
            await ok(savepoint.rollback() if job.n == 1 else savepoint.commit())
        return {jobs[1].id: Discard("dropped")}

    kit.handle(run_many, many=True)
    kit.add(*tasks(3))

    kit.drain(**WIDE)

    assert kit.notes() == ["job 0", "job 2"]
    assert kit.states() == ["completed", "discarded", "completed"]


@pytest.mark.parametrize("happens", [True, False])
def test_commit_without_an_answer_is_looked_up_for_all(kit: Kit, happens: bool) -> None:
    """What was committed stays done; what was not runs alone, in the same attempt."""
    lost: list[str] = []
    kit.on_engine = answerless_commit(lost, happens=happens)
    sizes: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        sizes.append(len(jobs))
        for job in jobs:
            effects(ctx.session, job, f"job {job.n}")

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(3))
    kit.run(**WIDE)

    for one in ids:
        assert kit.until_state(one, "completed").attempt == 1
    assert (lost, sizes) == (["answer"], [3] if happens else [3, 1, 1, 1])
    assert sorted(kit.notes()) == ["job 0", "job 1", "job 2"]


def counting(used: list[str]) -> Callable[[Engine], None]:
    """Return what notes the statements of the application's engine in *used*."""
    return lambda engine: event.listen(
        engine, "before_cursor_execute", lambda *args: used.append(args[2])
    )


@pytest.mark.read_committed("there is one statement more")
def test_batch_of_a_hundred_costs_two_statements(kit: Kit) -> None:
    """One INSERT for the rows of all jobs, one statement for all outcomes."""
    used: list[str] = []
    kit.on_engine = counting(used)

    async def run_many(jobs: Any, ctx: Any) -> None:
        for job in jobs:
            effects(ctx.session, job, "one")

    kit.handle(run_many, many=True)
    kit.add(*tasks(100))

    kit.drain(**WIDE)

    verbs = [one.split()[0] for one in used if "pg_catalog" not in one]
    counted = [verb for verb in verbs if verb in ("INSERT", "UPDATE", "SELECT", "WITH")]
    assert set(kit.states()) == {"completed"}
    assert len(kit.notes()) == 100
    assert counted == ["INSERT", "WITH"], used[-4:]


def test_batch_without_the_session_is_settled_like_other_jobs(kit: Kit) -> None:
    """Its outcomes are written by the runner, on its own connections."""
    used: list[str] = []
    kit.on_engine = counting(used)

    async def run_many(jobs: Any, ctx: Any) -> Any:
        return {job: job.n for job in jobs}

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(20))

    kit.drain(**WIDE)

    assert [kit.job(one).result for one in ids] == list(range(20))
    assert [one for one in used if "pg_catalog" not in one] == []


def test_suspect_never_shares_a_batch(kit: Kit) -> None:
    """A job that was there at two crashes may kill its process, but not its mates."""
    seen: list[list[int]] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        seen.append([job.n for job in jobs])

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(4))
    kit.sql("UPDATE jobs SET crashes = 2 WHERE id = :id", id=ids[1])

    kit.drain(**WIDE)

    assert sorted(seen) == [[0, 2, 3], [1]]


def test_renew_lease_renews_all_of_a_batch(kit: Kit) -> None:
    """For as long as asked, beyond the jobs' own lease, and ends one that was lost."""
    until: list[Any] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        if len(jobs) == 1:
            return
        await ok(ctx.renew_lease())
        await ok(ctx.renew_lease(timedelta(hours=2)))
        with kit.Session() as session:
            until.extend(session.scalars(select(Job.leased_until)))
        steal(kit, jobs[0].id)
        await ok(ctx.renew_lease())

    kit.handle(run_many, many=True)
    kit.add(Task(lease=timedelta(minutes=1)), Task())

    kit.drain(**WIDE)

    soon = datetime.now(UTC) + timedelta(hours=1)
    assert len(until) == 2
    assert min(until) > soon
    assert kit.states() == ["running", "completed"]


def test_undecodable_job_is_discarded_and_its_batch_runs(kit: Kit) -> None:
    """What no longer decodes is no part of the batch."""
    seen: list[list[int]] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        seen.append([job.n for job in jobs])

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(3))
    kit.sql("""UPDATE jobs SET payload = '{"n": "x"}' WHERE id = :id""", id=ids[0])

    kit.drain(**WIDE)

    assert (kit.states(), seen) == (["discarded", "completed", "completed"], [[1, 2]])


def test_middleware_is_not_called_for_batches(kit: Kit) -> None:
    """It wraps one job and its context; a batch, even of one job, has neither."""
    called: list[int] = []

    async def around(job: Any, ctx: Any, call_next: Any) -> Any:
        called.append(job.n)
        return await ok(call_next())

    def sync_around(job: Any, ctx: Any, call_next: Any) -> Any:
        called.append(job.n)
        return call_next()

    async def run_many(jobs: Any, ctx: Any) -> None:
        assert ctx.resources == "shared"

    kit.handle(run_many, many=True)
    kit.add(*tasks(1))
    kit.drain(
        middleware=[sync_around if kit.shell == "threads" else around],
        resources="shared",
        **WIDE,
    )

    assert (kit.states(), called) == (["completed"], [])


def test_run_one_runs_a_batch_of_one(kit: Kit) -> None:
    """The smallest batch is a list with one job."""
    seen: list[list[int]] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        seen.append([job.n for job in jobs])
        effects(ctx.session, jobs[0], "one")

    kit.handle(run_many, many=True)
    kit.add(*tasks(2))

    assert kit.run_one() == "completed"
    assert (seen, kit.notes()) == ([[0]], ["one"])


def test_sync_batches_run_beside_async_jobs(aio: Kit) -> None:
    """An AsyncRunner with a sync sessionmaker runs them in threads."""
    seen: list[tuple[int, bool]] = []

    def run_many(jobs: Any, ctx: Any) -> None:
        main = threading.current_thread() is threading.main_thread()
        seen.append((len(jobs), main))
        for job in jobs:
            effects(ctx.session, job, f"job {job.n}")
        if len(jobs) > 1:
            raise ValueError

    aio.handle(None)
    sync = Handler(run_many, is_async=False, many=True)
    setattr(Task, "__job_handler__", sync)  # noqa: B010
    aio.add(*tasks(3))

    aio.drain(sync_session=aio.Session, **WIDE)

    assert seen == [(3, False), (1, False), (1, False), (1, False)]
    assert (aio.states(), len(aio.notes())) == (["completed"] * 3, 3)
