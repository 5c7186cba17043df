"""Claims from queues with all channels, (queue, channel) pairs, prefixes, or all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from sqla_jobs import JobValueError
from sqla_jobs._core.subscriptions import Prefix
from sqla_jobs._store.claim import claim, claim_jobs
from sqla_jobs._store.take import Ask
from sqla_jobs.models import job_tables
from tests.conformance.factories import LEASE, NOW, Job, Work, fill, make_job
from tests.conformance.test_claim import ODD_NAME

TABLES = job_tables(Job)
TRICKY = ["*", "a'b", 'a"b', "%", "_", "a\\", "\N{PARTY POPPER}", "a,b", "{}", ODD_NAME]


def places(session: Session, queues: Sequence[Any], limit: int = 100) -> Counter[Any]:
    """Claim, and count what came by queue and channel."""
    found = claim(session, Job, queues=queues, limit=limit, now=NOW)
    rows = [session.get_one(Job, one.job_id) for one in found]
    return Counter((job.queue, job.channel) for job in rows)


def by_slots(
    session: Session, queues: Mapping[Any, int], limit: int = 100, **options: Any
) -> Counter[Any]:
    """Claim as a runner does, and count what came by queue and channel."""
    given: dict[str, Any] = {"kinds": ["work"], "runner_id": uuid4(), "lease": LEASE}
    jobs = claim_jobs(
        session, TABLES, queues=queues, limit=limit, now=NOW, **given, **options
    )
    return Counter((job.queue, job.channel) for job in jobs)


@pytest.fixture
def filled(session: Session) -> Session:
    """Return a session that sees 5 jobs of each channel of three queues."""
    for queue in ("tenant-a", "tenant-b", "mail"):
        for channel in ("", "x", "y"):
            fill(session, 5, queue=queue, channel=channel)
    return session


@pytest.mark.parametrize(
    ("queues", "expected"),
    [
        (["mail"], [("mail", ""), ("mail", "x"), ("mail", "y")]),
        ([("mail", "x")], [("mail", "x")]),
        ([("mail", "")], [("mail", "")]),
        ([("mail", "x"), ("tenant-a", "")], [("mail", "x"), ("tenant-a", "")]),
        ([("mail", "nobody"), ("nobody", "x"), Prefix("x")], []),
        (
            [Prefix("tenant-")],
            [(f"tenant-{q}", c) for q in "ab" for c in ("", "x", "y")],
        ),
        (
            [Prefix("tenant-b"), ("mail", "y")],
            [*(("tenant-b", c) for c in ("", "x", "y")), ("mail", "y")],
        ),
        (
            ["mail", ("mail", "x"), Prefix("")],
            [(q, c) for q in ("mail", "tenant-a", "tenant-b") for c in ("", "x", "y")],
        ),
    ],
)
def test_claim_takes_what_is_subscribed_to(
    filled: Session, queues: Sequence[Any], expected: Sequence[Any]
) -> None:
    """Names mean all channels, pairs one, prefixes all queues that begin so."""
    assert places(filled, queues) == Counter(dict.fromkeys(expected, 5))


@pytest.mark.parametrize("name", TRICKY, ids=range(len(TRICKY)))
def test_any_text_is_a_name(session: Session, name: str) -> None:
    """Quotes, stars, patterns and emoji are letters, in queues, channels, prefixes."""
    for queue, channel in ((name, "c"), ("q", name), (name + "-1", "")):
        make_job(session, queue=queue, channel=channel)
    make_job(session, queue="axb", channel="axb")

    assert places(session, [(name, "c")]) == {(name, "c"): 1}
    assert places(session, [("q", name)]) == {("q", name): 1}
    assert places(session, [Prefix(name)]) == {(name + "-1", ""): 1}


def test_job_counts_for_the_most_specific(filled: Session) -> None:
    """Slots of a name are not spent on its pairs, nor those of a prefix on names."""
    queues = {"mail": 3, ("mail", "x"): 1, Prefix(""): 4, ("tenant-a", "y"): 2}

    found = by_slots(filled, queues)

    assert found["mail", "x"] == 1
    assert found["mail", ""] + found["mail", "y"] == 3
    assert found["tenant-a", "y"] == 2
    assert sum(n for (q, _), n in found.items() if q.startswith("tenant")) == 6


def test_used_up_subscription_keeps_its_jobs(filled: Session) -> None:
    """Without slots a pair or name is not served by what matches it as well."""
    queues = {"mail": 9, ("mail", "x"): 0, "tenant-a": 0, Prefix("tenant-"): 99}

    found = by_slots(filled, queues)

    assert found["mail", "x"] == 0
    assert sum(n for (q, _), n in found.items() if q == "tenant-a") == 0
    assert sum(n for (q, _), n in found.items() if q == "tenant-b") == 15


def test_queues_of_a_prefix_share_its_slots_in_turn(session: Session) -> None:
    """A prefix with 4 slots takes 4 jobs in all, of the small queue as well."""
    fill(session, 50, queue="tenant-a", priority=5)
    fill(session, 2, queue="tenant-b")

    found = by_slots(session, {Prefix("tenant-"): 4}, 10)

    assert found == {("tenant-a", ""): 2, ("tenant-b", ""): 2}


def test_longest_prefix_wins(session: Session) -> None:
    """Prefixes inside each other: the longer one's queues cost the shorter nothing."""
    fill(session, 9, queue="tenant-vip-1")
    fill(session, 9, queue="tenant-1")

    found = by_slots(session, {Prefix("tenant-"): 2, Prefix("tenant-vip-"): 5})

    assert found == {("tenant-vip-1", ""): 5, ("tenant-1", ""): 2}


def test_limit_holds_over_all_subscriptions(filled: Session) -> None:
    """The limit of the claim bounds the sum."""
    queues = {"mail": 5, ("mail", "x"): 5, Prefix("tenant-"): 5}

    assert sum(by_slots(filled, queues, 7).values()) == 7


def test_paused_queue_is_closed_to_pairs_and_prefixes(filled: Session) -> None:
    """However a queue is subscribed to, a pause holds it."""
    filled.execute(insert(TABLES.queues).values(name="tenant-a", paused=True))

    found = places(filled, [("tenant-a", "x"), Prefix("tenant-")])

    assert {queue for queue, _ in found} == {"tenant-b"}


def test_only_one_suspect_comes_with_a_claim(session: Session) -> None:
    """Of jobs that crashed their runner twice one comes, however it is asked for."""
    for queue in ("a", "b", "c"):
        fill(session, 3, queue=queue, channel="x", crashes=2)
    queues = {"a": 5, ("b", "x"): 5, Prefix("c"): 5}

    assert sum(by_slots(session, queues).values()) == 1
    assert by_slots(session, queues, suspects=False) == {}


def test_bad_subscription_is_refused_before_the_claim(session: Session) -> None:
    """A list of lists is a mistake, not an empty claim."""
    with pytest.raises(JobValueError, match=r"\['mail', 'x'\] is no name of a queue"):
        claim(session, Job, queues=[["mail", "x"]])  # type: ignore[list-item]


def test_rest_of_a_claim_keeps_what_is_used_up() -> None:
    """After some jobs a pair without slots still keeps its channel from the name."""
    job = Work(queue="mail", channel="x")
    job.crashes = 0
    queues: dict[Any, int] = {"mail": 5, ("mail", "x"): 1}
    ask = Ask(limit=9, lease=LEASE, queues=queues)

    assert ask.after([job]).queues == {"mail": 5, ("mail", "x"): 0}
    names = Ask(limit=9, lease=LEASE, queues={"mail": 1, "sms": 2})
    assert names.after([job]).queues == {"sms": 2}
