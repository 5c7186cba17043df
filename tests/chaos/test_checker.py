"""The bank's checker finds every broken promise in a history that breaks just that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checker import (
    AttemptFacts,
    HandedOver,
    History,
    JobFacts,
    Limits,
    PostingFacts,
    Recovery,
    check,
)

LIMITS = Limits(recovery=4.5, handover=1.0, wait=8.5)
TRANSFER = JobFacts(
    id=1,
    kind="transfer",
    order="a",
    state="completed",
    attempt=2,
    crashes=1,
    lease_token=3,
    steps=("withdraw", "deposit"),
    reports=("jobs:1:transfer",),
)
FIRST = JobFacts(
    id=2, kind="entry", order="b", state="completed", channel="c", steps=("entry",)
)
SECOND = replace(FIRST, id=3, order="c")
STOPPED = JobFacts(
    id=4, kind="audit", order="d", state="cancelled", steps=("slice 0", "slice 1")
)
HELD = JobFacts(id=5, kind="note", order="e", state="cancelled", attempt=0)
POSTINGS = (
    PostingFacts(1, 1, "withdraw", account=1, amount=-7),
    PostingFacts(2, 1, "deposit", account=2, amount=7),
    PostingFacts(3, 2, "entry"),
    PostingFacts(4, 3, "entry"),
    PostingFacts(5, 4, "slice 0"),
)
CRASH = AttemptFacts(1, 1, "crash")
CANCEL = AttemptFacts(4, 1, "cancel")


def history(**changes: Any) -> History:
    """Return a history in which all is well, but for *changes*."""
    given: dict[str, Any] = {
        "opening": 100,
        "balances": {1: 93, 2: 107},
        "jobs": (TRANSFER, FIRST, SECOND, STOPPED, HELD),
        "attempts": (CRASH, CANCEL),
        "postings": POSTINGS,
        "sent": frozenset("abcde"),
        "taken_back": frozenset("z"),
        "may_cancel": frozenset("d"),
        "must_cancel": frozenset("e"),
        "ledger": {"jobs:1:transfer": [{"n": 1}, {"n": 1}]},
        "waits": [(1, "available", 3.0)],
        "recoveries": [
            Recovery("sigkill", 1, "transfer", rescued=True, seconds=4.4),
            Recovery("sigkill", 1, "transfer", rescued=True, seconds=None),
            Recovery("sigkill", 1, "transfer", True, 9.0, excused=True),
            Recovery("latency", 1, "transfer", rescued=False, seconds=9.0),
        ],
        "handovers": [HandedOver("idle", 0.9), HandedOver("nap", 4.0)],
        "server_log": "LOG:  ready\nERROR:  canceling statement",
        "worker_logs": [("worker-0.1", line()), ("worker-0.1", line(raised="Mishap"))],
    }
    return History(**given | changes)


def line(level: str = "INFO", text: str = "said", raised: str | None = None) -> str:
    """Return what a worker logs."""
    record = {"level": level, "text": text, "raised": raised, "trace": "..."}
    return json.dumps(record)


def jobs(*changed: JobFacts) -> tuple[JobFacts, ...]:
    """Return the jobs of the good history, some of them changed."""
    new = {job.id: job for job in changed}
    return tuple(new.get(job.id, job) for job in history().jobs)


def test_good_history_has_no_violation() -> None:
    """What is allowed is not reported."""
    assert check(history(), LIMITS) == []


DOUBLE = PostingFacts(9, 1, "deposit", account=2, amount=7)
BROKEN: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "money appears": ({"balances": {1: 93, 2: 108}}, ["money", "money"]),
    "an update is lost": ({"balances": {1: 100, 2: 100}}, ["money", "money"]),
    "sum wrong meanwhile": ({"live_sums": ["account 1 has 2"]}, ["money"]),
    "a step twice": (
        {"postings": (*POSTINGS, DOUBLE), "balances": {1: 93, 2: 114}},
        ["money", "double"],
    ),
    "a step never": ({"postings": POSTINGS[:2] + POSTINGS[3:]}, ["lost"]),
    "a slice of a cancelled job twice": (
        {"postings": (*POSTINGS, PostingFacts(9, 4, "slice 0"))},
        ["double"],
    ),
    "an effect of nobody": (
        {"postings": (*POSTINGS, PostingFacts(9, 77, "entry"))},
        ["effects"],
    ),
    "a job stays": ({"jobs": jobs(replace(FIRST, state="running"))}, ["stuck"]),
    "a job is given up": (
        {"jobs": jobs(replace(FIRST, state="discarded", attempt=0))},
        ["finished"],
    ),
    "a job is cancelled": ({"may_cancel": frozenset()}, ["finished"]),
    "a held job runs": (
        {"jobs": jobs(replace(HELD, state="completed", attempt=1))},
        ["finished"],
    ),
    "an attempt without an outcome": ({"attempts": (CANCEL,)}, ["outcomes"] * 2),
    "two outcomes of an attempt": (
        {"attempts": (CRASH, CANCEL, AttemptFacts(2, 1, "retry"))},
        ["outcomes"],
    ),
    "a cancelled job completes": (
        {
            "attempts": (CRASH, CANCEL, AttemptFacts(2, 1, "cancel")),
            "jobs": jobs(replace(FIRST, attempt=2)),
        },
        ["outcomes"],
    ),
    "a crash that is not recorded": (
        {"attempts": (replace(CRASH, outcome="retry"), CANCEL)},
        ["outcomes"],
    ),
    "an enqueue is lost": ({"sent": frozenset("abcdef")}, ["lost"]),
    "an enqueue is doubled": (
        {"jobs": jobs(replace(SECOND, order="b")), "sent": frozenset("abde")},
        ["double"],
    ),
    "a rollback is not one": ({"taken_back": frozenset("b")}, ["double"]),
    "a job of nobody": ({"sent": frozenset("bcde")}, ["double"]),
    "the ledger was not told": ({"ledger": {}}, ["lost"]),
    "the ledger was told twice, differently": (
        {"ledger": {"jobs:1:transfer": [{"n": 1}, {"n": 2}]}},
        ["ledger"],
    ),
    "the ledger was told of nothing": (
        {"ledger": {"jobs:1:transfer": [1], "jobs:2:transfer": [1]}},
        ["ledger"],
    ),
    "order is not kept": (
        {"postings": (*POSTINGS[:2], replace(POSTINGS[3], id=3),
                      replace(POSTINGS[2], id=4), POSTINGS[4])},
        ["order"],
    ),
    "a job waits": ({"waits": [(2, "available", 8.6)]}, ["stuck"]),
    "recovery is slow": (
        {"recoveries": [Recovery("sigkill", 1, "transfer", True, 4.6)]},
        ["recovery"],
    ),
    "an idle worker lingers": ({"handovers": [HandedOver("idle", 1.1)]}, ["handover"]),
    "a hand-over is slow": ({"handovers": [HandedOver("audit", 1.1)]}, ["handover"]),
    "a deadlock": ({"server_log": "ERROR:  deadlock detected"}, ["server"]),
    "the server dies": (
        {"server_log": "LOG:  server process was terminated by signal 11"},
        ["server"],
    ),
    "a surprise in a handler": (
        {"worker_logs": [("worker-0.1", line(raised="KeyError"))]},
        ["worker"],
    ),
    "an error": ({"worker_logs": [("worker-0.1", line("ERROR"))]}, ["worker"]),
    "a traceback": (
        {"worker_logs": [("w", "Traceback"), ("v", line()), ("w", "KeyError: 1")]},
        ["worker"],
    ),
    "a worker ends": ({"failures": ["worker-0.1 ended with status 1"]}, ["worker"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_history_is_caught(name: str) -> None:
    """Each history breaks one promise, and that one is named."""
    changes, rules = BROKEN[name]

    found = check(history(**changes), LIMITS)

    assert [one.rule for one in found] == list(rules), [str(one) for one in found]
