"""What a runner does next, decided without a clock, a thread or a database."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_jobs import JobValueError
from sqla_jobs._core.plan import (
    CLAIM_SHARE,
    COOLDOWN,
    HOT_POLLS,
    HOT_SECONDS,
    MAX_COOLDOWN,
    MAX_PENDING,
    Claim,
    Plan,
    Slots,
    Stop,
    Sweep,
    Wait,
)
from sqla_jobs._core.subscriptions import Prefix

POLL = 1.0


def wait(seconds: float) -> Wait:
    """Return a wait of about *seconds*."""
    return Wait(pytest.approx(seconds))  # type: ignore[arg-type]


def plan_of(
    concurrency: Any = 4, queues: Any = None, *, burst: bool = False, swept: bool = True
) -> Plan:
    """Return a plan at the time 0, whose first sweep found nothing."""
    plan = Plan(Slots.of(concurrency, queues), POLL, burst=burst)
    if swept:
        assert plan.next_step(0.0) == Sweep()
        plan.swept(0.0, moved=0, next_due=None)
    return plan


def claim(plan: Plan, now: float, **got: int) -> Claim:
    """Let the plan claim at *now*, and get *got*."""
    step = plan.next_step(now)
    assert isinstance(step, Claim), step
    plan.claimed(now, step, got)
    return step


# Slots


@pytest.mark.parametrize(
    ("concurrency", "queues", "slots"),
    [
        (None, None, Slots(10, 10)),
        (3, None, Slots(3, 3)),
        ((2, 5), None, Slots(2, 5)),
        (None, {"a": 2, "b": 3}, Slots(5, 5, {"a": 2, "b": 3}, ["a", "b"])),
        (4, {"a": 9}, Slots(4, 4, {"a": 9}, ["a"])),
        (None, ["a", "b"], Slots(10, 10, None, ["a", "b"])),
    ],
)
def test_slots_of_the_options(concurrency: Any, queues: Any, slots: Slots) -> None:
    """Numbers per queue add up unless a concurrency bounds them; names share it."""
    assert Slots.of(concurrency, queues) == slots


@pytest.mark.parametrize(
    ("concurrency", "queues", "message"),
    [
        (0, None, "concurrency must be a whole number of 1 or more, got 0"),
        (-3, None, "got -3"),
        (True, None, "got True"),
        (2.5, None, "got 2.5"),
        ((0, 5), None, r"concurrency\[0\] must be a whole number of 1 or more, got 0"),
        ((5, 2), None, r"\(min, max\) with min <= max, got \(5, 2\)"),
        (None, {"a": 0}, r"queues\['a'\] must be a whole number of 1 or more, got 0"),
        (None, {}, r"queues must name each queue once, got \[\]"),
        (None, [], r"got \[\]"),
        (None, ["a", "a"], r"got \['a', 'a'\]"),
        (None, "mail", "queues must be a list or a mapping, got 'mail'"),
    ],
)
def test_bad_slots_are_refused(concurrency: Any, queues: Any, message: str) -> None:
    """The message has the value and says what would do."""
    with pytest.raises(JobValueError, match=message):
        Slots.of(concurrency, queues)


@pytest.mark.parametrize("concurrency", [(1, 2, 3), (1, 2.5), (1,)])
def test_concurrency_is_a_number_or_a_pair(concurrency: Any) -> None:
    """Anything else is refused as an option, not later as a bug."""
    with pytest.raises(JobValueError, match="concurrency"):
        Slots.of(concurrency, None)


# Claims


def test_first_step_is_a_sweep_then_a_claim_of_all_slots() -> None:
    """What crashed or is due comes before the first claim."""
    plan = plan_of(swept=False)

    assert plan.next_step(0.0) == Sweep()
    plan.swept(0.0, moved=0, next_due=None)
    assert plan.next_step(0.0) == Claim(4, None)


def test_claim_asks_for_free_slots_only() -> None:
    """Three of four slots taken: one may be claimed; none free: nothing."""
    plan = plan_of(4)
    claim(plan, 0.0, default=3)
    plan.swept(POLL, moved=0, next_due=None)
    assert claim(plan, POLL, default=1) == Claim(1, None)

    assert plan.next_step(POLL) == Wait(POLL)


def test_full_claim_is_followed_by_another_when_a_slot_frees() -> None:
    """After a full claim more is expected: half the slots free, and it goes at once."""
    plan = plan_of(4)
    claim(plan, 0.0, default=4)
    assert plan.next_step(0.1) == wait(0.9)

    assert plan.finished("default")
    due = plan.next_step(0.1)
    assert due == Claim(1, None)


def test_single_slot_waits_a_moment_for_company() -> None:
    """Right after a claim one free slot of many is not worth a statement yet."""
    plan = plan_of(10)
    claim(plan, 0.0, default=10)
    plan.finished("default")

    assert plan.next_step(0.0) == wait(COOLDOWN)
    assert plan.next_step(COOLDOWN) == Claim(1, None)


def test_slow_claims_rest_longer() -> None:
    """Claims may take a sixth of the time while slots free one by one, no more."""
    plan = plan_of(10)
    step = plan.next_step(0.0)
    assert isinstance(step, Claim)
    plan.claimed(0.0, step, {"default": 10}, took=0.004)
    plan.finished("default")

    assert plan.next_step(0.0) == wait(CLAIM_SHARE * 0.004)

    plan.claimed(0.5, Claim(1, None), {"default": 1}, took=1.0)
    plan.finished("default")
    assert plan.next_step(0.5) == wait(MAX_COOLDOWN)

    for _ in range(4):
        plan.finished("default")
    assert plan.next_step(0.5) == Claim(5, None)  # half of the slots are idle


def test_short_claim_waits_for_the_poll() -> None:
    """A claim that found less than it asked for has emptied the queue."""
    plan = plan_of(4)
    claim(plan, 0.0, default=1)

    assert not plan.finished("default")
    assert plan.next_step(0.5) == wait(0.5)


def test_least_and_most_refill_together() -> None:
    """With (2, 4) nothing is claimed while two run; then up to four."""
    plan = plan_of((2, 4))
    claim(plan, 0.0, default=4)
    plan.finished("default")
    plan.finished("default")
    assert plan.next_step(0.5) == wait(0.5)

    plan.finished("default")
    assert plan.next_step(0.5) == Claim(3, None)


def test_slots_per_queue_are_claimed_by_their_own() -> None:
    """A full queue is not asked for; the limit is the open slots, or the bound."""
    plan = plan_of(None, {"a": 1, "b": 3})
    step = claim(plan, 0.0, a=1, b=1)
    assert (step.limit, step.queues) == (4, {"a": 1, "b": 3})

    plan.swept(POLL, moved=1, next_due=None)
    assert plan.next_step(POLL) == Claim(2, {"b": 2})


def test_bound_below_the_queues_slots_holds() -> None:
    """`concurrency` beside slots per queue is the most of all of them."""
    plan = plan_of(2, {"a": 2, "b": 2})

    assert plan.next_step(0.0) == Claim(2, {"a": 2, "b": 2})


def test_backlog_of_one_queue_does_not_hurry_for_another() -> None:
    """Only a slot of the queue that has more is worth a look at once."""
    plan = plan_of(None, {"a": 1, "b": 2})
    claim(plan, 0.0, a=1, b=1)

    assert plan.finished("a")
    assert not plan.finished("b")


def test_too_many_unwritten_outcomes_stop_the_claims() -> None:
    """While the database takes no outcomes, claiming on would only lose more."""
    plan = plan_of(4)
    plan.unsettled = MAX_PENDING

    assert isinstance(plan.next_step(0.0), Wait)
    plan.settled(1)
    assert plan.next_step(0.0) == Claim(4, None)


# Time


def test_idle_runner_sweeps_and_claims_once_per_poll() -> None:
    """Nothing to do costs two statements per poll, no more."""
    plan = plan_of()
    steps = []
    for tick in range(100):
        now = tick * POLL / 10
        while not isinstance(step := plan.next_step(now), Wait):
            steps.append(step)
            if isinstance(step, Claim):
                plan.claimed(now, step, {})
            else:
                plan.swept(now, moved=0, next_due=None)

    assert sum(isinstance(step, Sweep) for step in steps) <= 10
    assert sum(isinstance(step, Claim) for step in steps) <= 11


def test_wake_up_looks_at_once_and_stays_hot() -> None:
    """After a NOTIFY the runner polls often, longer than a NOTIFY is suppressed."""
    first, longest = HOT_POLLS
    plan = plan_of()
    claim(plan, 0.0)
    plan.woke(0.3)

    claim(plan, 0.3)
    assert plan.next_step(0.3) == wait(first)
    claim(plan, now := 0.3 + first)
    assert plan.next_step(now) == wait(2 * first)
    claim(plan, now := now + 2 * first)
    claim(plan, now := now + 4 * first)
    assert plan.next_step(now) == wait(longest)
    claim(plan, 0.31 + HOT_SECONDS)
    assert plan.next_step(0.32 + HOT_SECONDS) == wait(0.68 - HOT_SECONDS)


def test_job_that_no_wake_up_announced_brings_the_next_look_forward() -> None:
    """Where one NOTIFY was suppressed, another may have been."""
    first, _ = HOT_POLLS
    plan = plan_of()
    plan.woke(0.3)
    claim(plan, 0.3)
    claim(plan, now := 0.3 + first)
    claim(plan, now := now + 2 * first, default=1)

    assert plan.next_step(now) == wait(first)


def test_wake_up_during_a_claim_is_not_lost() -> None:
    """The claim may not have seen what the NOTIFY was about: the next one follows."""
    plan = plan_of()
    step = plan.next_step(0.3)
    assert isinstance(step, Claim)
    plan.woke(0.301)
    plan.claimed(0.302, step, {})

    assert plan.next_step(0.302) == Claim(4, None)
    claim(plan, 0.303)
    assert isinstance(plan.next_step(0.303), Wait)


def test_next_due_job_is_waited_for_exactly() -> None:
    """A job due before the next poll is staged when it is due."""
    plan = plan_of(swept=False)
    plan.swept(0.0, moved=0, next_due=0.25)
    claim(plan, 0.0)
    assert plan.next_step(0.0) == Wait(0.25)
    assert plan.next_step(0.25) == Sweep()

    plan.swept(0.25, moved=1, next_due=None)
    assert plan.next_step(0.25) == Claim(4, None)


def test_own_retry_is_noted_without_a_sweep() -> None:
    """A job that this runner put off is due when it said."""
    plan = plan_of()
    claim(plan, 0.0, default=1)
    plan.finished("default")
    plan.due_in(0.1, 0.2)

    assert plan.next_step(0.1) == wait(0.2)
    assert plan.next_step(0.3 + 1e-9) == Sweep()


def test_long_row_of_due_jobs_does_not_starve_the_claims() -> None:
    """While sweep after sweep is full, claims come in turn."""
    plan = plan_of(swept=False)
    kinds = []
    for tick in range(6):
        step = plan.next_step(tick)
        kinds.append(type(step))
        if isinstance(step, Claim):
            plan.claimed(tick, step, {"default": 1})
            plan.finished("default")
        else:
            plan.swept(tick, moved=1_000, next_due=0.0)

    assert kinds == [Sweep, Claim] * 3


def test_database_away_means_nothing_for_a_while() -> None:
    """Neither sweep nor claim until the pause is over."""
    plan = plan_of()
    plan.away(0.0, 5.0)

    assert plan.next_step(1.0) == Wait(4.0)
    assert isinstance(plan.next_step(5.0), Claim)


@given(least=st.integers(1, 12), more=st.integers(0, 12), named=st.booleans())
def test_loop_is_woken_only_by_slots_that_bring_the_claim_forward(
    *, least: int, more: int, named: bool
) -> None:
    """While it sleeps, nothing is due sooner than when it looked last."""
    most = least + more
    plan = plan_of((least, most), ["default"] if named else None)
    plan.claimed(0.0, claim_step(plan), {"default": most}, took=MAX_COOLDOWN)
    wakes = 0
    known = plan.next_step(0.001)

    for _ in range(most):
        woken = plan.finished("default")
        step = plan.next_step(0.001)
        assert woken or step == known or isinstance(known, Claim)
        wakes += woken
        known = step

    assert isinstance(known, Claim)
    assert wakes <= 2


def claim_step(plan: Plan) -> Claim:
    """Return the claim that is due at once."""
    step = plan.next_step(0.0)
    assert isinstance(step, Claim)
    return step


# The end


def test_stop_waits_for_what_runs_and_for_outcomes() -> None:
    """Nothing more is claimed; the end comes with the last outcome."""
    plan = plan_of()
    claim(plan, 0.0, default=2)
    plan.stop()
    assert isinstance(plan.next_step(10.0), Wait)

    assert not plan.finished("default")  # the loop sleeps on
    plan.unsettled += 1
    assert plan.finished("default")
    assert isinstance(plan.next_step(10.0), Wait)
    plan.settled(1)
    assert plan.next_step(10.0) == Stop()


def test_burst_ends_soon_after_the_last_job() -> None:
    """No poll is waited for: one claim and one sweep more, and that was it."""
    plan = plan_of(burst=True)
    claim(plan, 0.0, default=2)
    plan.finished("default")
    plan.finished("default")
    plan.unsettled += 2
    plan.settled(2)

    now = 0.001
    claim(plan, now)
    assert plan.next_step(now) == Sweep()
    plan.swept(now, moved=0, next_due=30.0)
    assert plan.next_step(now) == Stop()


def test_burst_looks_again_when_a_job_ended_during_the_claim() -> None:
    """A claim sent before a job's commit cannot have seen what that enqueued."""
    plan = plan_of(burst=True)
    claim(plan, 0.0, default=1)
    plan.swept(POLL, moved=1, next_due=None)
    sent = plan.next_step(POLL)
    assert isinstance(sent, Claim)
    plan.finished("default")
    plan.claimed(POLL + 0.1, sent, {})

    assert claim(plan, POLL + 0.1, default=1) == Claim(4, None)


def test_burst_goes_on_while_sweeps_find_something() -> None:
    """What a sweep makes available is still part of it."""
    plan = plan_of(burst=True)
    claim(plan, 0.0)
    assert plan.next_step(0.0) == Sweep()
    plan.swept(0.0, moved=1, next_due=None)

    assert plan.next_step(0.0) == Claim(4, None)


def test_burst_waits_for_a_job_that_is_due_at_once() -> None:
    """A retry without delay is run, though nothing was found before it."""
    plan = plan_of(burst=True)
    claim(plan, 0.0, default=1)
    plan.finished("default")
    plan.unsettled += 1
    plan.due_in(0.1, 0.0)
    plan.settled(1)

    assert plan.next_step(0.1) == Sweep()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_running_never_exceeds_the_slots(data: st.DataObject) -> None:
    """Whatever happens in whatever order, in all and per queue."""
    queues = data.draw(st.none() | st.just({"a": 1, "b": 2, "c": 4}))
    plan = plan_of(data.draw(st.sampled_from([1, 3, (2, 5), 7])), queues)
    running: list[str] = []
    now = 0.0
    for _ in range(60):
        now += data.draw(st.sampled_from([0.0, 0.001, 0.3, 1.0]))
        match plan.next_step(now):
            case Sweep():
                plan.swept(now, moved=data.draw(st.integers(0, 2)), next_due=None)
            case Claim(limit=limit, queues=asked) as step:
                assert limit > 0
                names = list(asked or ["x", "y"])
                left = dict(asked or dict.fromkeys(names, limit))
                got: dict[str, int] = {}
                picks: Any = st.lists(st.sampled_from(names), max_size=limit)
                for name in data.draw(picks):
                    if left[name] > 0:
                        left[name] -= 1
                        got[name] = got.get(name, 0) + 1
                plan.claimed(now, step, got)
                running += [name for name, count in got.items() for _ in range(count)]
            case Wait(seconds=seconds):
                assert seconds >= 0
        assert len(running) <= plan.slots.most
        for queue, slots in (queues or {}).items():
            assert running.count(queue) <= slots
        more: Any = st.booleans()
        if running and data.draw(more):
            plan.finished(running.pop())


# Subscriptions


PAIR = ("mail", "acme")
MIXED: dict[Any, int] = {"mail": 3, PAIR: 1, Prefix("t-"): 2}


def test_slots_of_patterns_are_counted_where_they_belong() -> None:
    """A used-up pair stays in the claim, so that its name does not take its jobs."""
    plan = plan_of(None, MIXED)
    step = plan.next_step(0.0)
    assert step == Claim(6, MIXED)
    assert isinstance(step, Claim)
    plan.claimed(0.0, step, {PAIR: 1, "mail": 2})

    assert plan.finished("mail") is False
    plan.swept(POLL, moved=0, next_due=None)
    assert plan.next_step(POLL) == Claim(4, {"mail": 2, PAIR: 0, Prefix("t-"): 2})


def test_used_up_pattern_is_no_backlog_of_others() -> None:
    """What has no slot asked for nothing: it cannot have come back full."""
    plan = plan_of(None, {"mail": 3, PAIR: 1})
    plan.running, plan._per_queue = 1, {PAIR: 1}
    step = plan.next_step(0.0)
    assert step == Claim(3, {"mail": 3, PAIR: 0})
    assert isinstance(step, Claim)

    plan.claimed(0.0, step, {"mail": 1})

    assert plan.finished(PAIR) is False


def test_source_of_a_job_is_the_subscription_it_counts_for() -> None:
    """Without slots per subscription all jobs count as one."""
    slots = Slots.of(None, MIXED)

    assert slots.source("mail", "acme") == PAIR
    assert slots.source("mail", "x") == "mail"
    assert slots.source("t-1", "acme") == Prefix("t-")
    assert slots.source("else", "") == "else"
    assert Slots.of(None, ["mail", PAIR]).source("mail", "acme") == ""


@pytest.mark.parametrize("bad", [("a", "b", "c"), 3, ["a", "b"]])
def test_queue_that_is_none_is_refused(bad: Any) -> None:
    """The message shows what was given."""
    with pytest.raises(JobValueError, match="no name of a queue"):
        Slots.of(None, [bad])


# The share of late jobs


def flood(plan: Plan, claims: int, *, late: bool = True) -> list[int]:
    """Claim so often, always full, and return how many late jobs were asked for."""
    asked = []
    for number in range(claims):
        plan.swept(float(number), moved=0, next_due=None)
        step = plan.next_step(float(number))
        assert isinstance(step, Claim), step
        plan.claimed(float(number), step, {"": step.limit}, late=late * step.late)
        asked.append(step.late)
        for _ in range(step.limit):
            plan.finished("")
    return asked


@pytest.mark.parametrize(("slots", "share"), [(10, 0.1), (1, 0.25), (3, 0.5), (8, 1.0)])
def test_late_jobs_get_their_share_of_a_flood(slots: int, share: float) -> None:
    """Over many full claims the share is exact, whatever the size of a claim."""
    plan = Plan(Slots.of(slots, None), POLL, retry_share=share)

    asked = flood(plan, 400)

    assert sum(asked) == pytest.approx(400 * slots * share, abs=slots)
    assert max(asked) <= slots


def test_no_share_asks_for_no_late_jobs() -> None:
    """With 0 the claim stays the plain one."""
    assert set(flood(Plan(Slots.of(4, None), POLL), 50)) == {0}


def test_without_late_jobs_they_are_asked_for_now_and_then() -> None:
    """A flood with nothing retried pays for one look in 17 claims."""
    plan = Plan(Slots.of(10, None), POLL, retry_share=0.5)

    asked = flood(plan, 170, late=False)

    assert 8 <= sum(one > 0 for one in asked) <= 11


def test_claim_that_found_all_earns_nothing() -> None:
    """Without a flood the late jobs come in their turn."""
    plan = plan_of(10)
    plan.retry_share = 1.0
    for number in range(5):
        claim(plan, number * POLL, default=9)
        for _ in range(9):
            plan.finished("default")
        plan.swept((number + 1) * POLL, moved=0, next_due=None)

    assert plan.next_step(6 * POLL) == Claim(10, None)


def test_full_queue_among_idle_ones_is_a_flood() -> None:
    """Late jobs of the busy queue get their share though another has free slots."""
    plan = Plan(Slots.of(None, {"busy": 2, "idle": 2}), POLL, retry_share=0.5)
    plan.swept(0.0, moved=0, next_due=None)
    claim(plan, 0.0, busy=2)
    plan.finished("busy")
    plan.finished("busy")

    assert plan.next_step(1e-3) == Claim(4, {"busy": 2, "idle": 2}, late=1)
