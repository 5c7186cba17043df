"""The low-level verbs on a claim, each behind the same fence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import (
    delete,
    func,
    select,
)
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobValueError, LeaseLost, PayloadError
from sqla_jobs._store import verbs
from sqla_jobs._store.claim import Claim
from sqla_jobs._store.operate import request_cancel
from sqla_jobs._store.sweep import rescue
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    LEASE,
    NOW,
    SECOND,
    Effect,
    Elsewhere,
    Job,
    attempts_of,
    claim_one,
    make_job,
    row_of,
    sent,
)

TABLES = job_tables(Job)
AFTER = NOW + LEASE + SECOND
Verb = Callable[[Session, Claim], object]

VERBS: dict[str, Verb] = {
    "complete": lambda session, claim: verbs.complete(session, claim, {"ok": True}),
    "fail": lambda session, claim: verbs.fail(session, claim, ValueError("no")),
    "fail_at": lambda session, claim: verbs.fail(session, claim, "no", retry_at=NOW),
    "snooze": lambda session, claim: verbs.snooze(session, claim, after=SECOND),
    "cancel": verbs.cancel,
    "discard": verbs.discard,
    "release": verbs.release,
    "renew": verbs.renew,
    "checkpoint": lambda session, claim: verbs.checkpoint(session, claim, {"n": 1}),
}
EVERY_VERB = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


def claimed(session: Session, **columns: Any) -> Claim:
    """Make a job and claim it."""
    return claim_one(session, make_job(session, **columns))


def take_over(session: Session, claim: Claim) -> Claim:
    """Rescue the job and claim it anew, as another worker would."""
    rescue(session, Job, now=AFTER)
    return claim_one(session, claim.job_id, now=AFTER)


def settled(session: Session, claim: Claim) -> None:
    """Complete the job behind its holder's back."""
    verbs.complete(session, take_over(session, claim), now=AFTER)


def rescued(session: Session, claim: Claim) -> None:
    """Take the job back without a new holder."""
    rescue(session, Job, now=AFTER)


def deleted(session: Session, claim: Claim) -> None:
    """Delete the row."""
    session.execute(delete(TABLES.table).where(TABLES.table.c.id == claim.job_id))


LOSSES: dict[str, Verb] = {
    "taken over": take_over,
    "settled by another": settled,
    "rescued": rescued,
    "deleted": deleted,
    "released": verbs.release,
    "completed": verbs.complete,
}


@EVERY_VERB
@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_late_verb_is_refused_with_its_effects(
    sessions: sessionmaker[Session], elsewhere: Elsewhere, verb: Verb, lose: Verb
) -> None:
    """Whoever lost the job cannot write to it, and its own writes roll back."""
    claim = elsewhere(claimed)
    elsewhere(lose, claim)
    before = elsewhere(everything)

    with sessions() as session:
        session.add(Effect(note="half"))
        session.flush()
        with pytest.raises(LeaseLost, match=f"job {claim.job_id}: attempt 1 no longer"):
            verb(session, claim)
        # Also when the worker swallows the error.
        session.commit()

    assert elsewhere(everything) == before


@EVERY_VERB
def test_lost_lease_leaves_the_with_block(
    sessions: sessionmaker[Session], elsewhere: Elsewhere, verb: Verb
) -> None:
    """Under ``with session.begin()`` and a savepoint the error comes out as it is."""
    claim = elsewhere(claimed)
    elsewhere(take_over, claim)

    def work() -> None:
        with sessions.begin() as session:
            session.add(Effect(note="half"))
            with session.begin_nested():
                session.add(Effect(note="nested"))
                session.flush()
                verb(session, claim)

    with pytest.raises(LeaseLost):
        work()

    assert elsewhere(count_effects) == 0


def everything(session: Session) -> list[Any]:
    """Return all rows that a worker may write."""
    tables = (TABLES.table, TABLES.attempts, Effect.__table__)
    return [session.execute(select(table)).all() for table in tables]


def count_effects(session: Session) -> int | None:
    """Return how many effects are committed."""
    return session.scalar(select(func.count()).select_from(Effect))


@EVERY_VERB
def test_verb_is_one_statement(session: Session, verb: Verb) -> None:
    """Every verb sends one statement, and leaves the commit to the caller."""
    claim = claimed(session)

    with sent(session) as statements:
        verb(session, claim)

    assert len(statements) == 1


def test_complete_stores_its_result(session: Session) -> None:
    """A completed job has its result, its time and no lease."""
    claim = claimed(session)

    verbs.complete(session, claim, {"sum": [1, None]}, now=AFTER)

    row = row_of(session, claim.job_id)
    assert (row["state"], row["result"]) == ("completed", {"sum": [1, None]})
    assert (row["finished_at"], row["leased_until"]) == (AFTER, None)


@pytest.mark.parametrize("bad", [{1, 2}, float("nan"), "\x00", "\ud800", b"bytes"])
def test_bad_result_is_refused(session: Session, bad: object) -> None:
    """What is not JSON raises before anything is written; the job is still held."""
    claim = claimed(session)

    with pytest.raises(PayloadError, match="result"):
        verbs.complete(session, claim, bad)
    with pytest.raises(PayloadError, match="state"):
        verbs.checkpoint(session, claim, {"key": bad})

    verbs.complete(session, claim)


def test_fail_waits_out_the_backoff(session: Session) -> None:
    """The row's own backoff decides, counted from the failure."""
    claim = claimed(session, backoff="constant(60)")

    assert verbs.fail(session, claim, KeyError("k"), now=AFTER) == "retryable"

    row = row_of(session, claim.job_id)
    assert row["run_at"] == AFTER + timedelta(minutes=1)
    assert (row["lane"], row["attempt"]) == (1, 1)
    assert row["last_error"] == "KeyError: 'k'"
    (logged,) = attempts_of(session, claim.job_id)
    assert logged["error"] == "KeyError: 'k'"
    assert "KeyError" in logged["traceback"]


def test_unknown_backoff_does_not_hold_the_job(session: Session) -> None:
    """A row of a newer version fails by the default backoff, and can be completed."""
    one, two = (claimed(session, backoff="fibonacci(1)") for _ in range(2))

    assert verbs.fail(session, one, "no", now=AFTER) == "retryable"
    verbs.complete(session, two)

    wait = row_of(session, one.job_id)["run_at"] - AFTER
    assert timedelta(seconds=0.9) <= wait <= timedelta(seconds=1.1)


def test_custom_backoff_is_the_class_function(session: Session) -> None:
    """The word ``custom`` stands for the function of the job's class."""
    claim = claimed(session, kind="patient", backoff="custom")
    other = claimed(session, kind="unheard", backoff="custom")

    verbs.fail(session, claim, "no", now=AFTER)
    assert verbs.fail(session, other, "no", now=AFTER) == "retryable"

    assert row_of(session, claim.job_id)["run_at"] == AFTER + timedelta(minutes=7)


def test_broken_backoff_does_not_hold_the_job(session: Session) -> None:
    """A backoff function that raises does not make the failure unrecordable."""
    claim = claimed(session, kind="broken", backoff="custom")

    assert verbs.fail(session, claim, "no", now=AFTER) == "retryable"

    assert row_of(session, claim.job_id)["run_at"] > AFTER


def test_retries_are_spread(session: Session) -> None:
    """Jobs that fail together do not come back together: the backoff has its jitter."""
    claims = [claimed(session) for _ in range(9)]

    for one in claims:
        verbs.fail(session, one, "no", now=AFTER)

    due = {row_of(session, one.job_id)["run_at"] for one in claims}
    assert len(due) > 1


def test_fail_takes_an_exact_time(session: Session) -> None:
    """``retry_at`` and ``retry_after`` are not clamped to the backoff."""
    at = NOW + timedelta(days=400, microseconds=1)
    one, two = claimed(session), claimed(session)

    verbs.fail(session, one, "no", retry_at=at, now=AFTER)
    verbs.fail(session, two, "no", retry_after=timedelta(0), now=AFTER)

    assert row_of(session, one.job_id)["run_at"] == at
    assert row_of(session, two.job_id)["run_at"] == AFTER
    assert row_of(session, one.job_id)["lane"] == 1


def test_fail_keeps_what_was_reported(session: Session) -> None:
    """A text is kept as it is; an exception keeps its type and its traceback."""
    reported, raised, timed = claimed(session), claimed(session), claimed(session)

    verbs.fail(session, reported, "HTTP 503")
    verbs.fail(session, raised, TimeoutError("slow"), retry_after=SECOND)
    verbs.fail(session, timed, "HTTP 429", retry_after=SECOND)

    assert row_of(session, reported.job_id)["last_error"] == "HTTP 503"
    assert row_of(session, raised.job_id)["last_error"] == "TimeoutError: slow"
    assert row_of(session, timed.job_id)["last_error"] == "HTTP 429"
    assert attempts_of(session, reported.job_id)[0]["traceback"] is None
    assert "TimeoutError" in attempts_of(session, raised.job_id)[0]["traceback"]


def test_fail_on_the_last_attempt_discards(session: Session) -> None:
    """No time asked for makes a spent job run again."""
    times: list[dict[str, Any]] = [{}, {"retry_at": AFTER}, {"retry_after": SECOND}]
    for options in times:
        claim = claimed(session, max_attempts=1)

        assert verbs.fail(session, claim, "no", **options) == "discarded"

        row = row_of(session, claim.job_id)
        assert row["reason"] == "attempts used up"
        assert row["last_error"] == "no"


@pytest.mark.parametrize(
    "error",
    [
        "nul \x00 and surrogate \ud800",
        ValueError("nul \x00 and surrogate \udfff"),
        "x" * 1_000_000,
    ],
    ids=["text", "exception", "long"],
)
@pytest.mark.parametrize("timed", [True, False])
def test_any_error_text_is_recordable(
    session: Session, error: Exception | str, timed: bool
) -> None:
    """NUL, lone surrogates and length never make a failure unrecordable."""
    claim = claimed(session)

    verbs.fail(session, claim, error, retry_after=SECOND if timed else None)

    stored = row_of(session, claim.job_id)["last_error"]
    assert 0 < len(stored.encode()) <= 16_000
    assert "\x00" not in stored


@pytest.mark.parametrize("verb", [verbs.cancel, verbs.discard])
def test_any_reason_is_recordable(session: Session, verb: Any) -> None:
    """The same holds for the reasons of a cancel and a discard."""
    claim = claimed(session)

    verb(session, claim, "\x00\ud800" * 1_000)

    assert 0 < len(row_of(session, claim.job_id)["reason"].encode()) <= 1_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry_at": NOW, "retry_after": SECOND}, "at= or after=, not both"),
        ({"retry_at": datetime(2050, 1, 1)}, "is naive"),  # noqa: DTZ001
        ({"retry_after": -SECOND}, "is negative"),
    ],
)
def test_bad_time_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """A time that makes no sense raises before anything is written."""
    claim = claimed(session)

    with pytest.raises(JobValueError, match=message):
        verbs.fail(session, claim, "no", **options)

    assert row_of(session, claim.job_id)["state"] == "running"


def test_snooze_needs_a_time(session: Session) -> None:
    """Neither or both of its times is an error."""
    claim = claimed(session)

    with pytest.raises(JobValueError, match="needs at= or after="):
        verbs.snooze(session, claim)
    with pytest.raises(JobValueError, match="not both"):
        verbs.snooze(session, claim, at=NOW, after=SECOND)


def test_snooze_gives_the_attempt_back(session: Session) -> None:
    """A snoozed job is scheduled, with its reason, and has spent no attempt."""
    claim = claimed(session, max_attempts=1, lane=1)

    verbs.snooze(session, claim, after=timedelta(hours=1), reason="busy", now=AFTER)

    row = row_of(session, claim.job_id)
    assert (row["state"], row["attempt"], row["snoozes"]) == ("scheduled", 0, 1)
    assert (row["reason"], row["lane"]) == ("busy", 1)
    assert row["run_at"] == AFTER + timedelta(hours=1)


def test_released_job_can_be_claimed_at_once(session: Session) -> None:
    """A job handed back has its attempt again and a new token for the next holder."""
    first = claimed(session, max_attempts=1)
    verbs.release(session, first)

    second = claim_one(session, first.job_id)

    assert (second.attempt, second.token) == (1, first.token + 1)
    with pytest.raises(LeaseLost):
        verbs.complete(session, first)


def test_release_then_late_commit(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job handed back at shutdown refuses what its old holder commits later."""
    claim = elsewhere(claimed)
    with sessions() as late:
        late.add(Effect(note="late"))
        late.flush()
        elsewhere(verbs.release, claim)

        with pytest.raises(LeaseLost):
            verbs.complete(late, claim)
        late.commit()

    assert elsewhere(count_effects) == 0
    assert elsewhere(row_of, claim.job_id)["state"] == "available"


def test_renew_answers_what_to_end(session: Session) -> None:
    """Of many claims those asked to end are returned; a single claim will do too."""
    one, two = claimed(session), claimed(session)
    request_cancel(session, Job, [two.job_id])

    assert verbs.renew(session, [one, two], now=NOW) == {two.job_id}
    assert verbs.renew(session, one, now=NOW) == frozenset()
    assert verbs.renew(session, []) == frozenset()


def test_renew_names_the_lost_and_renews_the_others(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """One lost lease of many raises; the others are renewed if the caller commits."""
    lost, held = elsewhere(claimed), elsewhere(claimed)
    elsewhere(verbs.release, lost)

    with sessions() as session:
        with pytest.raises(LeaseLost, match=f"job {lost.job_id}:"):
            verbs.renew(session, [lost, held], now=AFTER)
        session.commit()

    assert elsewhere(row_of, held.job_id)["leased_until"] == AFTER + LEASE


def test_stale_claim_beside_the_new_one_is_lost(session: Session) -> None:
    """A worker that renews both attempts of one job is told of the old one."""
    old = claimed(session)
    new = take_over(session, old)

    with pytest.raises(LeaseLost, match="attempt 1 no longer"):
        verbs.renew(session, [new, old], now=AFTER)


def test_checkpoint_answers_a_cancel(session: Session) -> None:
    """It saves the whole state and returns whether somebody asked to end the job."""
    claim = claimed(session, checkpoint={"old": 1})

    assert verbs.checkpoint(session, claim, {"page": 1}, now=NOW) is False
    request_cancel(session, Job, [claim.job_id])
    assert verbs.checkpoint(session, claim, now=AFTER) is True

    row = row_of(session, claim.job_id)
    assert row["checkpoint"] == {"page": 1}
    assert row["leased_until"] == AFTER + LEASE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_attempts": -1}, "extra_attempts must be 0 or more, got -1"),
        ({"lease": SECOND}, "lease must be 3 s or more, got 1 s"),
    ],
)
def test_bad_checkpoint_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """The error says what is wrong with the value."""
    claim = claimed(session)

    with pytest.raises(JobValueError, match=message):
        verbs.checkpoint(session, claim, **options)
    with pytest.raises(JobValueError, match="lease must be 3 s or more"):
        verbs.renew(session, claim, lease=SECOND)


def test_checkpoint_commits_with_domain_rows_or_not_at_all(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """State and effects of one transaction are one."""
    claim = elsewhere(claimed)
    for note, keep in (("kept", True), ("dropped", False)):
        with sessions() as session:
            session.add(Effect(note=note))
            session.flush()
            verbs.checkpoint(session, claim, {"at": note})
            if keep:
                session.commit()

    assert elsewhere(row_of, claim.job_id)["checkpoint"] == {"at": "kept"}
    assert elsewhere(count_effects) == 1


def test_checkpoint_takeover_then_the_reloaded_job(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A mapped job reloads the new holder's token; the claim's own still decides."""
    claim = elsewhere(claimed)
    with sessions() as session:
        verbs.checkpoint(session, claim, {"n": 1})
        session.commit()
        elsewhere(take_over, claim)
        job = session.get_one(Job, claim.job_id)
        session.commit()
        assert job.lease_token == claim.token + 2  # expired, reloaded

        session.add(Effect(note="stale"))
        with pytest.raises(LeaseLost):
            verbs.complete(session, claim)
        session.commit()

    assert elsewhere(count_effects) == 0


def test_two_holders_have_one_effect(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Of two who finish the same job in their own transactions one counts."""
    old = elsewhere(claimed)
    new = elsewhere(take_over, old)

    for holder in (old, new):
        with sessions() as session:
            session.add(Effect(note=str(holder.token)))
            session.flush()
            try:
                verbs.complete(session, holder)
            except LeaseLost:
                assert holder is old
            session.commit()

    assert elsewhere(count_effects) == 1
    assert elsewhere(row_of, old.job_id)["state"] == "completed"


def test_claims_can_be_collected(session: Session) -> None:
    """Claims are values: they compare, and go into sets whatever their payload."""
    one, two = claimed(session, payload={"a": [1]}), claimed(session)

    assert len({one, two, one}) == 2
