"""The commands on jobs: what they print, change and refuse, sync and asyncio."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from sqla_jobs import claim, fail
from sqla_jobs.cli.commands import command
from sqla_jobs.cli.database import Database
from sqla_jobs.cli.output import printable, shown
from tests.integration.cli.kit import Invoke, state_of
from tests.integration.cli.test_documents import REFERENCE, options, rows, written

BOTH = ("app:runner", "app:arunner")
Do = Callable[..., Result]
Data = Callable[..., Any]


@pytest.fixture
def do(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Do:
    """Return a function that runs a command on the application's runner."""
    monkeypatch.setenv("SQLA_JOBS_RUNNER", "app:runner")

    def run(*args: object, answer: str | None = None) -> Result:
        words = [str(arg) for arg in args]
        return CliRunner().invoke(command, words, input=answer)

    return run


@pytest.fixture
def data(do: Do) -> Data:
    """Return a function that runs a command and reads its JSON."""

    def read(*args: object) -> Any:
        done = do(*args, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    return read


@pytest.fixture
def jobs(app: ModuleType, session: Session) -> Session:
    """Return a session; no job, queue or runner of an earlier test is there."""
    for row in (app.Job.Queue, app.Job.Runner, app.Job.Attempt):
        session.execute(delete(row))
    session.commit()
    return session


def add(
    session: Session, job_class: type[Any], count: int = 1, **given: Any
) -> list[int]:
    """Enqueue jobs; columns that no constructor takes are written afterwards."""
    own = {k: given.pop(k) for k in ("state", "reason", "finished_at") if k in given}
    made = [job_class(**given) for _ in range(count)]
    session.add_all(made)
    session.flush()
    ids = [int(job.id) for job in made]
    if own:
        root = job_class.__jobs__.root
        session.execute(update(root).where(root.id.in_(ids)).values(own))
    session.commit()
    return ids


def states(session: Session, app: ModuleType) -> dict[str, int]:
    """Return how many jobs there are in each state."""
    session.rollback()
    query = select(app.Job.state, func.count()).group_by(app.Job.state)
    return {row[0]: row[1] for row in session.execute(query)}


# What the reference says


@pytest.mark.parametrize(
    "name", ["stats", "queues", "list", "show", "enqueue", "retry", "cancel", "dead"]
)
def test_reference_lists_every_option_of_commands_on_jobs(name: str) -> None:
    """The table has the options of the command, but for those that all have."""
    shared = {"target", "app_dir", "as_json"}
    own = [each for each in options(name) if each.name not in shared]

    assert [row[0] for row in rows(name)] == [written(each) for each in own]


@pytest.mark.parametrize("name", ["ping", "explain"])
def test_commands_without_options_of_their_own(name: str) -> None:
    """They have just what all commands on jobs have, as the reference says."""
    found = {each.name for each in options(name)}

    assert found == {"target", "app_dir", "as_json"}


def test_reference_tells_the_defaults() -> None:
    """What an option's help calls its default is in the table."""
    assert isinstance(command, click.Group)
    for name in ("stats", "queues", "list", "retry", "cancel", "dead"):
        params = {written(each): each for each in options(name)}
        for row in rows(name):
            default: Any = getattr(params[row[0]], "default", None)
            if type(default) is int:
                assert row[1].replace(",", "") == str(default), row


def test_reference_lists_the_keys_of_json(
    jobs: Session, app: ModuleType, data: Data
) -> None:
    """Each key that is printed is named, so that it stays."""
    (job,) = add(jobs, app.Greet)
    printed = {
        "ping": data("ping"),
        "stats": data("stats"),
        "list": data("list")[0],
        "explain": data("explain", job),
        "retry": data("retry", "--all", "--dry-run"),
    }

    for heading, found in printed.items():
        if heading == "retry":
            assert found == {"count": 0}
            continue
        section = REFERENCE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        assert [key for key in found if f"`{key}`" not in section] == []


# Looking


@pytest.mark.parametrize("runner", BOTH)
def test_ping_tells_the_way(do: Do, runner: str) -> None:
    """A database that answers, with the right tables: one line; or an object."""
    done = do("ping", "-r", runner)
    found = json.loads(do("ping", "--runner", runner, "--json").output)

    assert done.exit_code == 0, done.output
    assert re.search(r"answers in \d+\.\d\d ms; cli_jobs is as the", done.output)
    assert (found["ok"], found["error"]) == (True, None)
    assert 0 < found["round_trip_ms"] < 10_000


def test_ping_without_tables_fails(do: Do, app: ModuleType) -> None:
    """Missing tables are a failure with status 1, in both ways of printing."""
    app.Base.metadata.drop_all(app.engine)
    try:
        done, told = do("ping"), do("ping", "--json")
        other = do("list")
    finally:
        app.Base.metadata.create_all(app.engine)

    assert [done.exit_code, told.exit_code, other.exit_code] == [1, 1, 1]
    assert "has no table cli_jobs" in done.output
    assert json.loads(told.output)["ok"] is False
    assert "has no table cli_jobs" in other.output


@pytest.mark.parametrize("runner", ["away:runner", "away:arunner"])
def test_database_that_is_away_is_status_1(do: Do, folder: Any, runner: str) -> None:
    """One line names the database, without its password."""
    text = (folder / "app.py").read_text()
    line = 'DSN = "postgresql+psycopg://me:secret@127.0.0.1:1/none"'
    (folder / "away.py").write_text(re.sub(r"DSN = .*", line, text))

    for args in (["ping"], ["list"], ["cancel", "1"]):
        done = do(*args, "-r", runner)

        assert done.exit_code == 1, done.output
        assert done.output.startswith("Error: the database postgresql+psycopg://me:***")
        assert "secret" not in done.output
        assert "Traceback" not in done.output


def test_missing_runner_is_wrong_usage(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a runner the message names the option, the variable and the key."""
    monkeypatch.delenv("SQLA_JOBS_RUNNER")

    done = do("list")

    assert done.exit_code == 2
    assert "missing --runner" in done.output
    assert "SQLA_JOBS_RUNNER" in done.output


@pytest.mark.parametrize("runner", BOTH)
def test_list_shows_the_newest_first(
    jobs: Session, app: ModuleType, do: Do, data: Data, runner: str
) -> None:
    """One line per job; filters, limit and page; a JSON list without payloads."""
    old, new = add(jobs, app.Greet, 2, queue="mail", channel="c", name="top secret")
    (other,) = add(jobs, app.Wait, delay=timedelta(days=1))

    def ids(*args: object) -> list[int]:
        return [job["id"] for job in data("list", "-r", runner, *args)]

    assert ids() == [other, new, old]
    assert ids("-q", "mail", "-q", "none") == [new, old]
    assert ids("-k", "wait") == ids("-s", "scheduled") == [other]
    assert ids("-n", 1) == [other]
    assert ids("--before", new) == [old]
    assert ids("-q", "none") == []
    done = do("list", "-r", runner)
    assert [line.split()[0] for line in done.output.splitlines()[1:]] == [
        str(one) for one in (other, new, old)
    ]
    assert "mail/c" in done.output
    assert "secret" not in done.output + json.dumps(data("list"))


def test_empty_list_is_a_success(jobs: Session, do: Do, data: Data) -> None:
    """Nothing there is no failure."""
    assert (do("list").output, data("list")) == ("no jobs\n", [])
    assert (do("dead").output, data("dead")) == ("no jobs\n", [])


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["list", "--state", "dead"], "'dead' is not one of 'scheduled', 'available'"),
        (["list", "--limit", "0"], "0 is not in the range"),
        (["retry", "--state", "running", "--all"], "'running' is not one of"),
        (["show", "x"], "'x' is not a valid"),
        (["show", "9" * 20], "99999999999999999999 is not in the range"),
        (["retry", "0"], "0 is not in the range"),
        (["list", "-q", "\udcff"], r"not UTF-8: '\udcff'"),
        (["queues", "pause", "\udcff"], r"name='\udcff' holds a lone surrogate"),
        (["retry"], "name jobs by their ids or by filters"),
        (["cancel"], "name jobs by their ids or by filters"),
        (["cancel", "1", "--all"], "by their ids or by filters, not both"),
        (["enqueue", "gret"], "unknown kind 'gret'; did you mean 'greet'?"),
        (["enqueue", "greet", "--json", "{"], "--json: not JSON"),
        (["enqueue", "greet", "--json", "[" * 100_000], "--json: not JSON"),
        (["enqueue", "greet", "--json", "[1]"], "must be an object"),
        (["enqueue", "greet", "--json", '{"name": 1}'], "Greet.name is not str"),
        (["enqueue", "greet", "--json", '{"nam": 1}'], "did you mean 'name'?"),
        (["enqueue", "greet", "--max-attempts", "0"], "max_attempts=0"),
        (["enqueue", "greet", "--run-at", "2030-01-01"], "has no time zone"),
        (["enqueue", "greet", "--run-at", "soon"], "'soon' is no time"),
        (["enqueue", "greet", "--delay", "1e300"], "1e+300 s is too long"),
        (["enqueue", "greet", "--delay", "-1"], "-1.0 is not in the range"),
        (["queues", "pause"], "name the queues to pause"),
        (["queues", "set", "default"], "give a setting"),
        (["queues", "list", "--fair"], "--fair goes with set, not with list"),
        (["queues", "set", "default", "--max-running", "0"], "'0' is no whole number"),
        (["queues", "set", "q", "--max-running", "9" * 30], "max_running="),
        (["queues", "set", "default", "--rate-period", "1e300"], "too long"),
        (["queues", "set", "default", "--rate-period", "5"], "needs a rate_limit"),
        (["queues", "pause", "defualt"], "unknown queue 'defualt'; did you mean"),
        (["queues", "pause", "xyz"], "--new sets it up beforehand"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_names_the_value(do: Do, args: list[str], told: str) -> None:
    """Status 2, the offending value and what to do; no traceback."""
    done = do(*args)

    assert done.exit_code == 2, done.output
    assert told in done.output
    assert isinstance(done.exception, SystemExit)


def failed(session: Session, app: ModuleType) -> int:
    """Return the id of a job that failed at its only attempt."""
    (job,) = add(session, app.Greet, name="top secret", max_attempts=1)
    (held,) = claim(session, app.Job)
    try:
        raise ValueError("no\x1b[31m way")
    except ValueError as exc:
        fail(session, held, exc)
    session.commit()
    return job


@pytest.mark.parametrize("runner", BOTH)
def test_show_tells_all_but_payloads(
    jobs: Session, app: ModuleType, do: Do, data: Data, runner: str
) -> None:
    """Columns, attempts and the traceback; the payload's values on request only."""
    job = failed(jobs, app)

    done = do("show", job, "-r", runner)
    plain, full = data("show", job), data("show", job, "--payload", "-r", runner)

    assert done.exit_code == 0
    assert re.search(r"^state: +discarded$", done.output, re.MULTILINE)
    assert re.search(r'^payload_keys: +\["name"\]$', done.output, re.MULTILINE)
    assert re.search(
        r"^1 .* retry +ValueError: no\\x1b\[31m way$", done.output, re.MULTILINE
    )
    assert "Traceback" in done.output
    assert "\x1b" not in done.output
    assert "secret" not in done.output + json.dumps(plain)
    assert (plain["payload_keys"], plain["hidden"]) == (["name"], ["payload"])
    assert full["payload"] == {"name": "top secret"}
    assert [one["outcome"] for one in full["attempts"]] == ["retry"]
    assert datetime.fromisoformat(full["finished_at"]).tzinfo is not None


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("name", ["show", "explain", "cancel", "retry"])
def test_unknown_job_is_status_1(do: Do, name: str) -> None:
    """A command that can do nothing for an id fails."""
    done = do(name, 999_999)

    assert done.exit_code == 1
    assert "999999" in done.output


@pytest.mark.parametrize("runner", BOTH)
def test_explain_tells_why(
    jobs: Session, app: ModuleType, do: Do, data: Data, runner: str
) -> None:
    """The sentence for people, the code and the facts for programs."""
    (job,) = add(jobs, app.Greet, delay=timedelta(days=1))

    done = do("explain", job, "-r", runner)
    found = data("explain", job, "-r", runner)

    assert done.output.startswith(f"job {job}: it is due at ")
    assert "\nalso: no runner was seen" in done.output
    assert (found["code"], found["state"]) == ("scheduled", "scheduled")
    assert datetime.fromisoformat(found["details"]["run_at"]) > datetime.now(UTC)
    assert [one["code"] for one in found["also"]] == ["no_runner"]


@pytest.mark.parametrize("runner", BOTH)
def test_stats_counts_jobs_and_lists_runners(
    jobs: Session, app: ModuleType, do: Do, data: Data, runner: str
) -> None:
    """Per queue and state, cut where there are more; live runners only."""
    add(jobs, app.Greet, 3, queue="mail")
    add(jobs, app.Greet, state="completed", finished_at=func.now())
    for name, age in (("alive", 0), ("gone", 2)):
        jobs.add(
            app.Job.Runner(
                id=uuid4(),
                name=name,
                host="box",
                pid=7,
                kinds=["greet"],
                queues=None,
                seen_at=func.now() - timedelta(minutes=age),
            )
        )
    jobs.commit()

    found = data("stats", "-r", runner)
    cut = do("stats", "--at-most", 2, "-q", "mail", "-r", runner).output

    assert found["counts"] == [
        {"queue": "default", "state": "completed", "count": 1, "cut": False},
        {"queue": "mail", "state": "available", "count": 3, "cut": False},
    ]
    assert [one["name"] for one in found["runners"]] == ["alive"]
    assert re.search(r"^mail +0 +2\+ ", cut, re.MULTILINE)
    assert re.search(r"^alive +box +7 .* all +greet$", cut, re.MULTILINE)
    assert "default" not in cut


# Changing


@pytest.mark.parametrize("runner", BOTH)
def test_enqueue_prints_the_id(
    jobs: Session, app: ModuleType, do: Do, runner: str
) -> None:
    """The job is as the options say; nothing but its id is printed."""
    done = do(
        *("enqueue", "greet", "-r", runner, "--json", '{"name": "Ann"}'),
        *("-q", "mail", "--channel", "c", "--priority", 7, "--max-attempts", 3),
        *("--run-at", "2050-01-01T00:00:00Z", "--unique-key", "u", "--tag", "a"),
        *("--fingerprint", "f", "--tag", "b"),
    )

    assert done.exit_code == 0, done.output
    job = jobs.get_one(app.Greet, int(done.output))
    assert (job.name, job.queue, job.channel, job.priority) == ("Ann", "mail", "c", 7)
    assert (job.max_attempts, job.unique_key, job.fingerprint) == (3, "u", "f")
    assert (job.run_at, job.tags) == (datetime(2050, 1, 1, tzinfo=UTC), ["a", "b"])


def test_enqueue_leaves_the_rest_to_the_class(
    jobs: Session, app: ModuleType, do: Do
) -> None:
    """Without options it is what the constructor makes."""
    job = jobs.get_one(app.Greet, int(do("enqueue", "greet").output))
    plain = app.Greet()
    jobs.add(plain)
    jobs.flush()

    for name in ("payload", "queue", "channel", "priority", "state", "tags", "ordered"):
        assert getattr(job, name) == getattr(plain, name)


def test_enqueue_reads_standard_input(jobs: Session, app: ModuleType, do: Do) -> None:
    """With a dash for the text, so that arguments need not be in the history."""
    done = do("enqueue", "greet", "--json", "-", answer='{"name": "Bo"}')

    assert jobs.get_one(app.Greet, int(done.output)).name == "Bo"


def test_enqueue_of_raw_takes_any_object(
    jobs: Session, app: ModuleType, do: Do
) -> None:
    """A kind without a class, for workers of your own; ordered and delayed."""
    text = '{"a": [1]}'
    done = do(
        *("enqueue", "raw", "--json", text),
        *("--ordered", "--channel", "c", "--delay", 60),
    )

    assert done.exit_code == 0, done.output
    job = jobs.get_one(app.Job, int(done.output))
    assert (job.kind, job.payload, job.ordered) == ("raw", {"a": [1]}, True)
    assert job.state == "scheduled"


def test_enqueue_of_a_taken_key_is_status_1(
    jobs: Session, app: ModuleType, do: Do
) -> None:
    """The live job that holds the key is named."""
    (job,) = add(jobs, app.Greet, unique_key="k")

    done = do("enqueue", "greet", "--unique-key", "k")

    assert done.exit_code == 1
    assert f"job {job}" in done.output
    assert "'k'" in done.output
    assert states(jobs, app) == {"available": 1}


@pytest.mark.parametrize("runner", BOTH)
def test_cancel_by_ids_asks_nothing(
    jobs: Session, app: ModuleType, do: Do, data: Data, runner: str
) -> None:
    """Waiting, running and ended ones are told apart; the reason is kept."""
    (waiting,) = add(jobs, app.Greet)
    (running,) = add(jobs, app.Greet, state="running")
    (ended,) = add(jobs, app.Greet, state="completed")

    ids = (waiting, running, ended, waiting)
    assert data("cancel", *ids, "--dry-run") == {"count": 2}
    found = data("cancel", *ids, "--reason", "why not", "-r", runner)

    assert found == {
        "cancelled": [waiting],
        "requested": [running],
        "unchanged": [ended],
    }
    assert jobs.get_one(app.Job, waiting, populate_existing=True).reason == "why not"
    assert do("cancel", ended).exit_code == 1


def test_cancel_by_key_and_fingerprint(
    jobs: Session, app: ModuleType, data: Data
) -> None:
    """Only live jobs that have it."""
    (keyed,) = add(jobs, app.Greet, unique_key="k")
    tagged = add(jobs, app.Greet, 2, fingerprint="f")
    add(jobs, app.Greet, fingerprint="f", state="completed")
    add(jobs, app.Greet)

    by_key = data("cancel", "--unique-key", "k", "--yes")
    by_tag = data("cancel", "--fingerprint", "f", "--yes")

    assert (by_key["cancelled"], by_tag["cancelled"]) == ([keyed], tagged)
    assert states(jobs, app) == {"available": 1, "cancelled": 3, "completed": 1}


def test_cancel_by_filter_asks_first(jobs: Session, app: ModuleType, do: Do) -> None:
    """The count is shown; no, and no answer at all, change nothing."""
    add(jobs, app.Greet, 3, queue="mail")
    add(jobs, app.Greet)

    no = do("cancel", "-q", "mail", answer="n\n")
    nothing = do("cancel", "-q", "mail")

    assert "cancel 3 jobs? [y/N]" in no.output
    assert (no.exit_code, nothing.exit_code) == (1, 1)
    assert states(jobs, app) == {"available": 4}
    yes = do("cancel", "-q", "mail", answer="y\n")
    assert yes.exit_code == 0, yes.output
    assert "cancelled: " in yes.output
    assert states(jobs, app) == {"available": 1, "cancelled": 3}


@pytest.mark.parametrize(
    "args",
    [
        ["cancel", "--all"],
        ["retry", "--all"],
        ["dead", "--delete"],
        ["dead", "--requeue"],
    ],
    ids=" ".join,
)
def test_dry_run_only_counts(
    jobs: Session, app: ModuleType, do: Do, data: Data, args: list[str]
) -> None:
    """It says what would be done, as text and as JSON, and does nothing."""
    add(jobs, app.Greet, 2)
    add(jobs, app.Greet, 2, state="discarded", finished_at=func.now())

    verb = {"--delete": "delete", "--requeue": "requeue"}.get(args[1])
    wanted = verb or {"cancel": "cancel", "retry": "requeue"}[args[0]]

    assert do(*args, "--dry-run").output == f"would {wanted} 2 jobs\n"
    assert data(*args, "--dry-run") == {"count": 2}
    assert states(jobs, app) == {"available": 2, "discarded": 2}


def test_filter_that_matches_nothing_is_status_1(
    jobs: Session, app: ModuleType, do: Do
) -> None:
    """A script learns that nothing was done, and nobody is asked."""
    add(jobs, app.Greet)

    for args in (["retry", "--all"], ["dead", "--delete"], ["cancel", "-q", "none"]):
        done = do(*args)

        assert done.exit_code == 1
        assert re.fullmatch(r"no job to \w+\n", done.output)
        assert json.loads(do(*args, "--json").output) == {"count": 0}


@pytest.mark.parametrize("runner", BOTH)
def test_retry_by_ids(jobs: Session, app: ModuleType, data: Data, runner: str) -> None:
    """Ended jobs run again; taken keys and live jobs are listed."""
    (dead,) = add(jobs, app.Greet, state="discarded")
    (twin,) = add(jobs, app.Greet, state="completed", unique_key="k")
    (live,) = add(jobs, app.Greet, unique_key="k")

    found = data("retry", dead, twin, live, "-r", runner)

    assert found == {"requeued": [dead], "duplicates": [twin], "unchanged": [live]}
    assert state_of(jobs, jobs.get_one(app.Job, dead)) == "available"


def test_retry_of_all_takes_dead_letters(
    jobs: Session, app: ModuleType, data: Data
) -> None:
    """Other ended jobs only if their state is named; of the queue and kind only."""
    dead = add(jobs, app.Greet, 2, state="discarded", queue="mail")
    add(jobs, app.Wait, state="discarded", queue="mail")
    add(jobs, app.Greet, state="discarded")
    (done,) = add(jobs, app.Greet, state="completed", queue="mail")

    found = data("retry", "-q", "mail", "-k", "greet", "--yes")
    more = data("retry", "-q", "mail", "-s", "completed", "--yes")

    assert (found["requeued"], more["requeued"]) == (dead, [done])
    assert states(jobs, app) == {"available": 3, "discarded": 2}


def test_retry_may_keep_the_state(jobs: Session, app: ModuleType, data: Data) -> None:
    """With --keep-state what the last attempt saved stays."""
    kept, cleared = add(jobs, app.Greet, 2, state="discarded")
    jobs.execute(update(app.Job).values(checkpoint={"page": 3}))
    jobs.commit()

    data("retry", kept, "--keep-state")
    data("retry", cleared)

    found = [jobs.get_one(app.Job, one).checkpoint for one in (kept, cleared)]
    assert found == [{"page": 3}, None]


@pytest.mark.parametrize("runner", BOTH)
def test_dead_letters_are_listed_requeued_and_deleted(
    jobs: Session, app: ModuleType, do: Do, data: Data, runner: str
) -> None:
    """By queue and kind; attempts go with what is deleted."""
    job = failed(jobs, app)
    dead = add(jobs, app.Wait, 2, state="discarded", reason="gave up", queue="mail")

    listed = do("dead", "-r", runner).output
    assert [one["id"] for one in data("dead")] == [*dead[::-1], job]
    assert [one["id"] for one in data("dead", "-k", "greet")] == [job]
    assert [one["id"] for one in data("dead", "-q", "mail", "-n", 1)] == [dead[1]]
    assert "gave up" in listed

    assert data("dead", "--requeue", "-q", "mail", "-y", "-r", runner) == {
        "requeued": dead,
        "duplicates": [],
    }
    assert data("dead", "--delete", "-y", "-r", runner) == {"deleted": [job]}
    assert states(jobs, app) == {"available": 2}
    assert jobs.scalar(select(func.count()).select_from(app.Job.Attempt)) == 0


def test_many_jobs_are_changed_in_batches(
    jobs: Session, app: ModuleType, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch commits by itself; none is left out, none comes twice."""
    ids = add(jobs, app.Greet, 7)
    monkeypatch.setattr("sqla_jobs.cli.changes.BATCH", 3)
    runs = list[object]()
    run = Database.run

    def counting(self: Database, work: Any) -> Any:
        runs.append(work)
        return run(self, work)

    monkeypatch.setattr(Database, "run", counting)

    done = do("cancel", "--all", "--yes", "--json")

    assert json.loads(done.output)["cancelled"] == ids
    assert len(runs) == 1 + 3  # the count; 3, 3 and 1


def test_long_lists_of_ids_are_cut(jobs: Session, app: ModuleType, do: Do) -> None:
    """People see how many, and the first twenty."""
    ids = add(jobs, app.Greet, 25)

    done = do("cancel", "--all", "-y")

    few = ", ".join(map(str, ids[:20]))
    assert done.output == f"cancelled: 25 jobs: {few}, ...\n"


# Queues


@pytest.mark.parametrize("runner", BOTH)
def test_queues_are_paused_and_resumed(
    jobs: Session, app: ModuleType, do: Do, data: Data, runner: str
) -> None:
    """Several at once; the answer is how they are now."""
    add(jobs, app.Greet, 2, queue="mail")

    paused = data("queues", "pause", "mail", "default", "-r", runner)
    jobs.rollback()
    found = jobs.execute(select(app.Job.Queue.name, app.Job.Queue.paused))
    flags = {row[0]: row[1] for row in found}
    text = do("queues", "-r", runner).output
    resumed = data("queues", "resume", "mail", "-r", runner)

    assert [(one["name"], one["paused"]) for one in paused] == [
        ("default", True),
        ("mail", True),
    ]
    assert flags == {"default": True, "mail": True}
    assert re.search(r"^mail +2 +0 +0 +paused$", text, re.MULTILINE)
    assert [(one["name"], one["paused"]) for one in resumed] == [("mail", False)]
    assert resumed[0]["counts"]["available"] == 2


def test_queue_gets_limits(jobs: Session, do: Do, data: Data) -> None:
    """Only what is given changes, none removes a limit."""
    data(
        *("queues", "set", "default", "--max-running", 5, "--rate-limit", 10),
        *("--rate-period", 60, "--max-running-per-channel", 2, "--fair"),
        *("--on-discard", "block"),
    )
    text = do("queues").output
    (found,) = data("queues", "set", "default", "--max-running", "none", "--no-fair")

    told = "fair, 5 at once, 2 per channel, 10 per 60 s, blocks on discard"
    assert told in text
    assert (found["max_running"], found["fair"]) == (None, False)
    assert (found["rate_limit"], found["rate_period"]) == (10, 60.0)
    assert found["on_discard"] == "block"


def test_change_of_queues_is_all_or_nothing(
    jobs: Session, app: ModuleType, do: Do
) -> None:
    """An unknown name among several changes none; --new takes it."""
    refused = do("queues", "pause", "default", "xyz")
    left = jobs.scalar(select(func.count()).select_from(app.Job.Queue))
    jobs.rollback()
    taken = do("queues", "pause", "default", "xyz", "--new")

    assert (refused.exit_code, left, taken.exit_code) == (2, 0, 0)
    assert jobs.scalar(select(func.count()).select_from(app.Job.Queue)) == 2


# What terminals see


def test_text_cannot_command_a_terminal() -> None:
    """Escape sequences, line ends and marks of direction are escaped."""
    assert printable("a\x1b[2Jb\n\u202ec\x00") == "a\\x1b[2Jb\\n\\u202ec\\x00"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert printable("Grüße, 東京 [bold]") == "Grüße, 東京 [bold]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (False, "no"),
        (timedelta(minutes=1.5), "90 s"),
        ({"a": [1]}, '{"a": [1]}'),
    ],
)
def test_values_are_shown_for_people(value: object, text: str) -> None:
    """Short, and without Python's own words."""
    assert shown(value) == text


def test_markup_in_data_is_just_text(jobs: Session, app: ModuleType, do: Do) -> None:
    """A queue's name is no markup of the table's."""
    add(jobs, app.Greet, queue="[red]x[/red]")

    assert "[red]x[/red]" in do("list").output
    assert "[red]x[/red]" in do("stats").output
