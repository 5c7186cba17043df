"""Why is a job not running? Each reason, the order of reasons, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, delete, insert, literal, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import Explanation, JobState, JobValueError, Runner, Why, explain
from sqla_jobs._core.explanation import span
from sqla_jobs._core.subscriptions import Prefix, label
from sqla_jobs._store.explain import MOST_AHEAD, STALE
from sqla_jobs._store.runners import upsert_runner
from sqla_jobs._store.sweep import stage
from sqla_jobs.models import job_tables
from sqla_jobs.models.columns import COLUMN_ORDER
from tests.conformance.factories import (
    DAY,
    LEASE,
    NOW,
    SECOND,
    Base,
    Job,
    Work,
    change,
    claim_one,
    fill,
    make_job,
    sent,
)
from tests.conformance.test_plans import EACH_PLAN, plans

TABLES = job_tables(Job)


def why(session: Session, job_id: int) -> Explanation:
    """Return the explanation at `NOW`."""
    return explain(session, Job, job_id, now=NOW)


def codes(session: Session, job_id: int) -> list[Why]:
    """Return all reasons, the first one first."""
    found = why(session, job_id)
    return [found.code, *(reason.code for reason in found.also)]


def add_runner(session: Session, **columns: Any) -> UUID:
    """Insert the row of a runner that was seen a second ago."""
    values: dict[str, Any] = {
        "id": uuid4(),
        "name": "runner-1",
        "host": "box",
        "pid": 77,
        "kinds": ["work"],
        "queues": None,
        "seen_at": NOW - SECOND,
        **columns,
    }
    session.execute(insert(TABLES.runners).values(values))
    found: UUID = values["id"]
    return found


def add_queue(session: Session, name: str = "default", **columns: Any) -> None:
    """Insert the row of a queue."""
    session.execute(insert(TABLES.queues).values(name=name, **columns))


@pytest.fixture
def alive(session: Session) -> UUID:
    """Add a runner that takes jobs of the kind from everywhere; return its id."""
    return add_runner(session)


# Jobs that ended, or never were


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("completed", "it completed at 2050-06-01 12:00:00 UTC; requeue it"),
        ("cancelled", "it was cancelled at 2050-06-01 12:00:00 UTC: no need; requeue"),
        ("discarded", "UTC: no need (E: x); mend the cause, then requeue it"),
    ],
)
def test_final_job_tells_its_end(session: Session, state: str, told: str) -> None:
    """The end, its time, its reason and what to do; by one statement."""
    job = make_job(session, state=state, reason="no need", last_error="E: x\ny")

    with sent(session) as statements:
        found = why(session, job)

    assert len(statements) == 1
    assert (found.state, found.code.value, found.also) == (state, state, ())
    assert told in found.text
    assert found.details["reason"] == "no need"
    assert str(found) == f"job {job}: {found.text}"


def test_unknown_job_is_no_error(session: Session) -> None:
    """An id without a row has an answer too."""
    found = why(session, 999_999_999)

    assert (found.code, found.state) == (Why.UNKNOWN, None)
    assert "there is no job 999999999" in found.text


def test_archived_job_is_found(session: Session) -> None:
    """Where retention moved a job, its end is still known."""
    job = make_job(session, state="completed")
    columns = [TABLES.table.c[name] for name in COLUMN_ORDER]
    row = select(*columns, literal(NOW + DAY)).where(TABLES.table.c.id == job)
    names = [*COLUMN_ORDER, "archived_at"]
    session.execute(insert(TABLES.archive).from_select(names, row))
    session.execute(delete(TABLES.table).where(TABLES.table.c.id == job))

    found = why(session, job)

    assert (found.code, found.state) == (Why.ARCHIVED, JobState.COMPLETED)
    assert "at 2050-06-02 12:00:00 UTC" in found.text


# Jobs whose time has not come


@pytest.mark.usefixtures("alive")
def test_scheduled_job_tells_when(session: Session) -> None:
    """Until when, in absolute and in relative terms."""
    job = make_job(session, state="scheduled", run_at=NOW + timedelta(hours=2.5))

    found = why(session, job)

    assert (found.code, found.also) == (Why.SCHEDULED, ())
    assert found.text == "it is due at 2050-06-01 14:30:00 UTC, in 2 h 30 min"
    assert found.details == {"run_at": NOW + timedelta(hours=2.5)}


@pytest.mark.usefixtures("alive")
def test_retryable_job_tells_its_error(session: Session) -> None:
    """After which error, until when."""
    job = make_job(session, state="retryable", attempt=2, last_error="E: x\nmore")

    found = why(session, job)

    assert found.code is Why.RETRYABLE
    assert found.text == (
        "attempt 2 of 10 failed (E: x); it is due at 2050-06-01 12:00:01 UTC, in 1 s"
    )


@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize(
    ("until", "told"),
    [(NOW + DAY, "held until 2050-06-02 12:00:00 UTC"), (NOW, "its hold expired at")],
    ids=["held", "expired"],
)
def test_held_job_tells_until_when(session: Session, until: Any, told: str) -> None:
    """A hold that is over is told apart: the next poll ends it."""
    job = make_job(session, state="held", held_until=until)

    found = why(session, job)

    assert found.code is Why.HELD
    assert told in found.text
    assert found.details == {"held_until": until}


def test_waiting_job_tells_what_comes_after(session: Session) -> None:
    """What would hold it once it is due is listed behind its own reason."""
    add_queue(session, paused=True)
    job = make_job(session, state="scheduled")

    assert codes(session, job) == [Why.SCHEDULED, Why.NO_RUNNER, Why.PAUSED]


@pytest.mark.parametrize("state", ["scheduled", "retryable", "held"])
def test_due_job_without_runners_waits_for_one(session: Session, state: str) -> None:
    """Once its time has come, that nobody is there comes first."""
    job = make_job(session, state=state, run_at=NOW, held_until=NOW)

    assert codes(session, job) == [Why.NO_RUNNER, Why(state)]


# Jobs that run


def test_running_job_tells_by_whom(session: Session) -> None:
    """The runner's name, host and process, since when and until when."""
    runner = add_runner(session)
    job = make_job(session, state="running", runner_id=runner)

    found = why(session, job)

    assert (found.code, found.also) == (Why.RUNNING, ())
    assert found.text == (
        "it runs: attempt 1 of 10, on runner-1 (host box, pid 77) since"
        " 2050-06-01 12:00:00 UTC, leased until 2050-06-01 12:00:30 UTC"
    )
    assert found.details["runner_id"] == runner


def test_running_job_without_a_runner(session: Session) -> None:
    """A low-level claim has no runner; one that left its row is named by its id."""
    claimed = make_job(session)
    claim_one(session, claimed)
    left = make_job(session, state="running", runner_id=UUID(int=5))

    assert "on a worker without a runner" in why(session, claimed).text
    assert f"on runner {UUID(int=5)}, which has left" in why(session, left).text


def test_requested_cancel_is_told(session: Session) -> None:
    """A running job that is asked to end says so."""
    job = make_job(session, state="running", cancel_requested_at=NOW, reason="stop")

    found = why(session, job)

    assert [found.code, found.also[0].code] == [Why.RUNNING, Why.CANCEL_REQUESTED]
    assert found.also[0].details["reason"] == "stop"


@pytest.mark.parametrize("runners", [0, 1])
def test_expired_lease_is_told(session: Session, runners: int) -> None:
    """A lease nobody has taken back yet: who should, and whether anybody could."""
    for _ in range(runners):
        add_runner(session)
    job = make_job(session, state="running", leased_until=NOW)

    found = codes(session, job)

    assert found == [Why.LEASE_EXPIRED, Why.NO_RUNNER][: 2 - runners]


# Nobody takes it


def test_no_runner_tells_who_was_last(session: Session) -> None:
    """A runner that was silent for a minute is no live one, but worth a name."""
    add_runner(session, name="older", seen_at=NOW - DAY)
    add_runner(session, name="last", seen_at=NOW - STALE)
    job = make_job(session)

    found = why(session, job)

    assert (found.code, found.also) == (Why.NO_RUNNER, ())
    assert found.text == (
        "no runner was seen in the last 1 min, the last one was last at"
        " 2050-06-01 11:59:00 UTC; start one"
    )


def test_kind_that_no_live_runner_knows(session: Session) -> None:
    """A kind only a dead runner knew is unknown."""
    add_runner(session, kinds=["other"])
    add_runner(session, kinds=["work"], seen_at=NOW - DAY)

    assert codes(session, make_job(session)) == [Why.UNKNOWN_KIND]


@pytest.mark.parametrize(
    ("queues", "served"),
    [
        ({"mail": 3}, True),
        ({"sms": 3}, False),
        ({label(("mail", "de")): 1}, True),
        ({label(("mail", "fr")): 1}, False),
        ({label(Prefix("ma")): 1}, True),
        ({label(Prefix("sm")): 1}, False),
        ({'["not a label"': 1}, True),
    ],
    ids=["name", "other", "pair", "other channel", "prefix", "other prefix", "newer"],
)
def test_queue_that_no_live_runner_takes_from(
    session: Session, queues: dict[str, int], *, served: bool
) -> None:
    """Names, pairs and prefixes as runners write them; what is unreadable counts."""
    add_runner(session, kinds=["other"])
    add_runner(session, queues=queues)
    job = make_job(session, queue="mail", channel="de")

    assert codes(session, job) == [Why.WAITING if served else Why.NOT_SERVED]


def test_explain_reads_what_a_runner_writes(
    session: Session, job_engine: Engine
) -> None:
    """The row of a real runner is understood, whatever it subscribes to."""
    maker = sessionmaker(job_engine)
    for queues in (["mail"], [("mail", "de")], [Prefix("m")]):
        runner = Runner(maker, Job, queues=queues)
        runner.handlers["work"] = None  # type: ignore[assignment]
        savepoint = session.begin_nested()
        upsert_runner(session, TABLES, runner._info())
        job = make_job(session, queue="mail", channel="de")
        other = make_job(session, queue="other", channel="de")

        assert explain(session, Job, job).code is Why.WAITING
        assert explain(session, Job, other).code is Why.NOT_SERVED
        savepoint.rollback()


def test_raw_job_needs_no_runner(session: Session) -> None:
    """Jobs without a class are for workers who leave no row; a pause holds them too."""
    job = make_job(session, kind="raw")

    found = why(session, job)

    assert (found.code, found.also) == (Why.WAITING, ())
    assert found.text.endswith("; a worker takes it that asks for such jobs")
    add_queue(session, paused=True)
    assert codes(session, job) == [Why.PAUSED]


@pytest.mark.usefixtures("alive")
def test_paused_queue_is_told(session: Session) -> None:
    """A queue that an operator paused."""
    add_queue(session, paused=True)

    found = why(session, make_job(session))

    assert (found.code, found.also) == (Why.PAUSED, ())
    assert found.details == {"queue": "default"}


# Ordered channels


def add_ordered(session: Session, state: str = "available", **columns: Any) -> int:
    """Insert an ordered job of the channel "c"."""
    return make_job(session, state=state, ordered=True, channel="c", **columns)


@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("available", "which is available"),
        ("scheduled", "which is scheduled until 2050-06-02 12:00:00 UTC"),
        ("retryable", "which is retryable until 2050-06-01 12:00:01 UTC"),
        ("held", "which is held until 2050-06-02 12:00:00 UTC"),
        ("running", "which is running"),
    ],
)
def test_ordered_job_tells_what_is_before_it(
    session: Session, state: str, told: str
) -> None:
    """The head of the channel by its id, and why it holds the rest."""
    head = add_ordered(session, state, held_until=NOW + DAY)
    add_ordered(session)
    job = add_ordered(session)
    make_job(session, channel="c")  # not ordered: it is in nobody's way

    found = why(session, job)

    assert (found.code, found.also) == (Why.ORDERED_BEHIND, ())
    assert f"behind job {head}, {told}" in found.text
    assert "; 2 jobs of the channel come first" in found.text
    assert (found.details["job_id"], found.details["ahead"]) == (head, 2)


@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize("state", ["completed", "cancelled", "discarded"])
def test_head_of_a_channel_is_next(session: Session, state: str) -> None:
    """Jobs that ended, jobs of other channels and later ones are not in the way."""
    add_ordered(session, state)
    make_job(session, ordered=True, channel="d")
    make_job(session, ordered=True, channel="c", queue="q")
    job = add_ordered(session)
    add_ordered(session)

    found = why(session, job)

    assert found.code is Why.WAITING
    assert "the next one of ordered channel 'c' of queue 'default'" in found.text


@pytest.mark.usefixtures("alive")
def test_head_waits_for_a_later_one_that_runs(session: Session) -> None:
    """A requeued job may become the head while a later one is running."""
    job = add_ordered(session)
    later = add_ordered(session, "running")

    found = why(session, job)

    assert found.code is Why.ORDERED_BEHIND
    assert found.details["job_id"] == later


@pytest.mark.usefixtures("alive")
def test_dead_head_blocks_where_the_queue_says_so(session: Session) -> None:
    """With on_discard=block the dead letter is named; jobs before it run first."""
    before = add_ordered(session)
    dead = add_ordered(session, "discarded")
    job = add_ordered(session)
    add_queue(session)
    assert codes(session, job) == [Why.ORDERED_BEHIND]

    session.execute(update(TABLES.queues).values(on_discard="block"))

    assert codes(session, before) == [Why.WAITING]
    assert codes(session, job) == [Why.ORDERED_BEHIND, Why.BLOCKED]
    change(session, before, state="completed")
    found = why(session, job)
    last = add_ordered(session)
    assert (found.code, found.also) == (Why.BLOCKED, ())
    assert codes(session, last) == [Why.BLOCKED, Why.ORDERED_BEHIND]
    assert found.text.startswith(f"job {dead}, earlier in its ordered channel")


# Limits


@pytest.mark.usefixtures("alive")
def test_limit_of_the_queue_names_who_holds_the_slots(session: Session) -> None:
    """The running jobs of the queue, up to five of them; not those of others."""
    add_queue(session, max_running=6)
    jobs = [make_job(session, state="running") for _ in range(6)]
    make_job(session, state="running", queue="other")

    found = why(session, make_job(session))

    assert (found.code, found.also) == (Why.QUEUE_LIMIT, ())
    assert found.details == {"limit": 6, "running": 6, "jobs": jobs[:5]}
    assert found.text == (
        "queue 'default' may run 6 at once, and 6 run"
        f" ({', '.join(map(str, jobs[:5]))}, ...); it waits for one of them to end"
    )


@pytest.mark.usefixtures("alive")
def test_limit_of_the_channel_is_its_own(session: Session) -> None:
    """Only running jobs of the same channel count, and are named."""
    add_queue(session, max_running_per_channel=1, max_running=99)
    for _ in range(6):
        make_job(session, state="running", channel="b")
    held = make_job(session, state="running", channel="c")

    assert codes(session, make_job(session, channel="d")) == [Why.WAITING]
    found = why(session, make_job(session, channel="c"))

    assert (found.code, found.also) == (Why.CHANNEL_LIMIT, ())
    assert found.details == {"limit": 1, "running": 1, "jobs": [held]}


@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize(
    ("tokens", "age", "left"), [(0.5, 0, 5), (0, 4, 6), (0, 10, None), (None, 0, None)]
)
def test_rate_limit_tells_when_it_goes_on(
    session: Session, tokens: float | None, age: int, left: int | None
) -> None:
    """The bucket is filled up to now: without a whole token it tells when one is."""
    at = NOW - age * SECOND
    add_queue(
        session,
        rate_limit=6,
        rate_period=60 * SECOND,
        tokens=tokens,
        tokens_at=at,
    )

    found = why(session, make_job(session))

    assert found.code is (Why.WAITING if left is None else Why.RATE_LIMIT)
    assert left is None or found.details["next_at"] == NOW + left * SECOND
    assert left is None or "may start 6 per 1 min" in found.text


@pytest.mark.usefixtures("alive")
def test_all_limits_that_are_reached_are_told(session: Session) -> None:
    """One is the first reason, the others follow."""
    rate: dict[str, Any] = {
        "rate_limit": 1,
        "rate_period": DAY,
        "tokens": 0,
        "tokens_at": NOW,
    }
    add_queue(session, max_running=1, max_running_per_channel=1, **rate)
    make_job(session, state="running")

    found = codes(session, make_job(session))

    assert found == [Why.QUEUE_LIMIT, Why.CHANNEL_LIMIT, Why.RATE_LIMIT]


# Nothing but those before it


@pytest.mark.usefixtures("alive")
def test_suspect_is_told(session: Session) -> None:
    """A job that crashed its runner twice waits for a process without another one."""
    found = codes(session, make_job(session, crashes=2))

    assert found == [Why.SUSPECT, Why.WAITING]
    assert codes(session, make_job(session, crashes=1)) == [Why.WAITING]


@pytest.mark.usefixtures("alive")
def test_place_in_line_follows_the_claim_order(session: Session) -> None:
    """Priority, lane, time, id: in that order; other queues and states don't count."""
    job = make_job(session)
    late = make_job(session, run_at=NOW + SECOND)
    retried = make_job(session, lane=1)
    urgent = make_job(session, priority=5, lane=2, run_at=NOW + DAY)
    twin = make_job(session)
    make_job(session, priority=9, queue="other")
    for state in ("running", "completed"):
        make_job(session, priority=9, state=state)

    ahead = [
        why(session, one).details["ahead"] for one in (urgent, job, twin, late, retried)
    ]

    assert ahead == [0, 1, 2, 3, 4]
    assert why(session, urgent).text == (
        "it is the next one of queue 'default'; a runner takes it when a slot is free"
    )
    assert "1 job of queue 'default' comes first" in why(session, job).text
    assert "2 jobs of queue 'default' come first" in why(session, twin).text


@pytest.mark.usefixtures("alive")
def test_place_in_a_fair_queue_is_that_in_the_channel(session: Session) -> None:
    """Channels take turns: what waits in others is not before the job."""
    add_queue(session, fair=True)
    fill(session, 20, channel="a")
    make_job(session, channel="b")

    found = why(session, make_job(session, channel="b"))

    assert found.details["ahead"] == 1
    assert "1 job of channel 'b' of fair queue 'default' comes first" in found.text


# The function itself


def test_explain_takes_a_job_too(session: Session) -> None:
    """An instance needs no id beside it."""
    work = Work()
    session.add(work)
    session.flush()

    assert explain(session, work) == explain(session, Work, work.id)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((Job,), "needs the id of a job, got None"),
        ((Job, "7"), "needs the id of a job, got '7'"),
        ((Job, True), "needs the id of a job, got True"),
        ((Job, 2**63), "ids must be integers, got 9223372036854775808"),
        ((Work(), 7), "takes a job, or a class and an id"),
        ((Work(),), "has no id yet; flush the session first"),
    ],
    ids=["no id", "text", "bool", "huge", "both", "pending"],
)
def test_explain_refuses_what_is_no_job(
    session: Session, args: tuple[Any, ...], told: str
) -> None:
    """The error has the value and says what to give."""
    with pytest.raises(JobValueError, match=r"explain|ids must|no id yet") as caught:
        explain(session, *args)

    assert told in str(caught.value)


def test_explanation_is_plain_data(session: Session) -> None:
    """Its details are JSON once times are text; it can be hashed and compared."""
    found = why(session, make_job(session, state="retryable"))

    assert json.loads(json.dumps(found.details, default=str))["attempt"] == 1
    assert len({found, found}) == 1


def test_explain_changes_nothing(session: Session) -> None:
    """It locks nothing and writes nothing: other statements see the same job."""
    job = make_job(session)
    with sent(session) as statements:
        why(session, job)

    assert all(s.lstrip().startswith(("SELECT", "WITH")) for s in statements)
    assert not any("FOR " in s for s in statements)
    assert stage(session, Job, now=NOW).count == 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.25, "0.25 s"), (90, "1 min 30 s"), (3_600, "1 h"), (90_061, "1 d 1 h")],
)
def test_durations_are_short(seconds: float, told: str) -> None:
    """The two largest units will do."""
    assert span(timedelta(seconds=seconds)) == told


# What it costs


@pytest.fixture(scope="module")
def crowd(job_engine: Engine) -> Iterator[Engine]:
    """Yield an engine on 20,000 ready jobs, 5,000 ordered ones and 300 running."""
    lease = {"lease_token": 1, "attempt": 1, "leased_until": NOW + LEASE}
    with Session(job_engine) as session:
        fill(session, 20_000)
        fill(session, 20_000, queue="fair", channel="c")
        fill(session, 5_000, ordered=True, channel="c")
        fill(session, 20_000, state="completed", finished_at=NOW)
        fill(session, 300, state="running", **lease)
        add_queue(session, max_running=10_000)
        add_queue(session, "fair", fair=True)
        add_runner(session)
        session.commit()
        session.execute(text("ANALYZE"))
        session.commit()
    yield job_engine
    schema = job_engine.get_execution_options()["schema_translate_map"][None]
    names = ", ".join(f"{schema}.{table.name}" for table in Base.metadata.sorted_tables)
    with job_engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names}"))


@EACH_PLAN
@pytest.mark.parametrize(
    ("columns", "ahead"),
    [
        ({}, MOST_AHEAD),
        ({"priority": 9}, 0),
        ({"queue": "fair", "channel": "c"}, MOST_AHEAD),
        ({"queue": "fair", "channel": "c", "priority": 9}, 0),
        ({"channel": "c", "ordered": True}, MOST_AHEAD),
    ],
    ids=["last", "first", "last of channel", "first of channel", "ordered"],
)
def test_explain_never_scans_the_backlog(
    crowd: Engine, mode: str, columns: dict[str, Any], ahead: int
) -> None:
    """The place is counted to 1,000 on an index, also where few come first."""
    with Session(crowd) as session:
        job = make_job(session, **columns)
        session.commit()
        found = why(session, job)

    seen = plans(crowd, mode, lambda session: why(session, job))

    assert len(seen) <= 5
    assert (found.details["ahead"], found.details["more"]) == (ahead, ahead > 0)
    assert {name for plan in seen for name in plan.scanned()}.isdisjoint({"jobs"})
    assert max(plan.most_rows() for plan in seen) <= MOST_AHEAD + 1
    with Session(crowd) as session:
        session.delete(session.get_one(Job, job))
        session.commit()
