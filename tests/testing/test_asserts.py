"""`assert_enqueued` and its like: what matches, and what a failure says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import ANY

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from sqla_jobs import constant
from sqla_jobs.testing import all_enqueued, assert_enqueued, drain, refute_enqueued
from tests.testing.kit import (
    HOUR,
    SECOND,
    Always,
    Customer,
    Job,
    Kit,
    Mail,
    OtherTask,
    Task,
)

AT = datetime(2030, 1, 1, tzinfo=UTC)


def message(call: Any, *args: Any, **options: Any) -> str:
    """Return the text of the failure."""
    with pytest.raises(AssertionError) as failed:
        call(*args, **options)
    return str(failed.value)


def test_pending_job_is_found(kit: Kit) -> None:
    """A job that is only added is flushed, found and returned."""
    job = kit.add(Mail(to="ada"), Mail(to="bob"))

    assert kit.call(assert_enqueued, Mail, to="ada") is job
    assert kit.call(assert_enqueued, Job) is job
    assert kit.call(refute_enqueued, Mail, to="eve") is None
    assert len(kit.call(all_enqueued, Mail)) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"n": 3},
        {"n": ANY},
        {"n": lambda n: n > 2},
        {"run_at": AT, "state": "scheduled"},
        {"run_at": lambda at: at > AT - HOUR},
        {"queue": "slow", "priority": 5, "tags": ["a"]},
        {"timeout": HOUR, "max_attempts": 2},
        {"backoff": constant(SECOND)},
        {"payload": {"n": 3}},
        {"n": 3, "customer": ANY},
    ],
    ids=[
        "equal",
        "any",
        "function",
        "time",
        "later",
        "columns",
        "options",
        "backoff",
        "payload",
        "relationship",
    ],
)
def test_values_match(both: Kit, values: dict[str, Any]) -> None:
    """Arguments and columns match by `==`, and by functions of the value."""
    both.add(Always(n=9))
    job = both.add(
        Task(
            n=3,
            run_at=AT,
            queue="slow",
            priority=5,
            tags=["a"],
            timeout=HOUR,
            max_attempts=2,
        )
    )

    assert both.call(assert_enqueued, Task, **values) is job


@pytest.mark.parametrize(
    "values",
    [
        {"n": 4},
        {"n": "3"},
        {"n": lambda n: n > 3},
        {"n": 3, "queue": "slow"},
        {"backoff": constant(HOUR)},
        {"customer": None},
        {"state": "completed"},
    ],
    ids=["value", "type", "function", "column", "backoff", "relationship", "state"],
)
def test_values_differ(both: Kit, values: dict[str, Any]) -> None:
    """One value that differs is enough not to match."""
    both.add(Task(n=3, customer=Customer(name="Ada")))

    both.call(refute_enqueued, Task, **values)
    with pytest.raises(AssertionError):
        both.call(assert_enqueued, Task, **values)


def test_relationships_match(both: Kit) -> None:
    """A relationship is the same row, also as an object of another session."""
    ada, bob = both.add(Customer(name="Ada")), both.add(Customer(name="Bob"))
    job = both.add(Task(customer=ada))

    assert both.call(assert_enqueued, Task, customer=ada) is job
    both.call(refute_enqueued, Task, customer=bob)
    other = both.run(both.session.merge(Customer(id=ada.id, name="Ada")))
    both.session.expunge(other)
    assert both.call(assert_enqueued, Task, customer=other) is job


def test_count_is_exact(both: Kit) -> None:
    """With a count all matches are returned, and their number must be right."""
    first, second = both.add(Mail(to="ada")), both.add(Mail(to="ada", count=2))

    assert both.call(assert_enqueued, Task, count=0) == []
    assert both.call(all_enqueued, Mail, count=2) == [second]
    assert both.call(all_enqueued, Mail, to="ada") == [first, second]
    both.call(refute_enqueued, Mail, count=3)
    with pytest.raises(TypeError, match=r"all_enqueued\(session, Mail, count=2\)"):
        both.call(assert_enqueued, Mail, count=2)
    both.add(Always(n=1), Always(n=1))
    assert len(both.call(assert_enqueued, Always, count=2, n=1)) == 2
    text = message(both.call, assert_enqueued, Always, count=1)
    assert text.startswith("1 wanted, 2 found: Always enqueued\n")


def test_failure_lists_the_closest_first(both: Kit) -> None:
    """The message has what was wanted, and how each job of the class differs."""
    both.add(Mail(to="eve", count=7))
    both.flush()
    job = both.add(Mail(to="ada", queue="fast"))
    both.flush()

    text = message(both.call, assert_enqueued, Mail, to="ada", queue="mail")

    assert text.splitlines() == [
        "no Mail with to='ada', queue='mail' enqueued",
        "enqueued of Mail, the closest first:",
        f"  Mail {job.id - 1}, available: to='eve'",
        f"  Mail {job.id}, available: queue='fast'",
    ]
    text = message(both.call, assert_enqueued, Mail, to="ada", queue="slow")
    assert text.splitlines()[2:] == [
        f"  Mail {job.id}, available: queue='fast'",
        f"  Mail {job.id - 1}, available: to='eve', queue='mail'",
    ]


def test_failure_is_bounded(both: Kit) -> None:
    """However many jobs there are, and however long their values, it stays short."""
    both.add(*(Mail(to=f"{n}" * 5_000) for n in range(9)))

    text = message(both.call, assert_enqueued, Mail, to="ada")

    assert text.endswith("\n  and 4 more")
    assert len(text) < 1_000


def test_failure_names_other_kinds(both: Kit) -> None:
    """Without a job of the class the others are counted, and none is said to be."""
    assert message(both.call, assert_enqueued, Mail).splitlines() == [
        "no Mail enqueued",
        "nothing else is enqueued either",
    ]
    both.add(Always(), Always(), Task())
    assert message(both.call, assert_enqueued, Mail).splitlines() == [
        "no Mail enqueued",
        "enqueued of other kinds: 2 always, 1 task",
    ]


def test_failure_knows_ended_jobs(both: Kit) -> None:
    """Jobs that have ended are not enqueued; the message says how to find them."""
    job = both.add(Always(n=1))
    assert both.call(drain) == {"completed": 1}

    both.call(refute_enqueued, Always)
    assert both.call(assert_enqueued, Always, state="completed") is job
    text = message(both.call, assert_enqueued, Always, n=1)
    assert text.endswith(
        "1 with these values have ended (completed); to find them give"
        " state='completed'"
    )
    assert "ended" not in message(both.call, assert_enqueued, Always, n=2)


def test_refusal_lists_what_was_found(both: Kit) -> None:
    """What should not be there is shown with its arguments."""
    job = both.add(Mail(to="ada"), Mail(to="bob"))

    text = message(both.call, refute_enqueued, Mail, to="ada")
    assert (
        text == f"1 Mail with to='ada' enqueued:\n  Mail {job.id}, available: to='ada'"
    )
    text = message(both.call, refute_enqueued, Mail)
    assert text.splitlines() == [
        "2 Mail enqueued:",
        f"  Mail {job.id}, available: count=1, to='ada'",
        f"  Mail {job.id + 1}, available: count=1, to='bob'",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("subjet", r"unknown attribute 'subjet'; Mail has count, to, and the columns"),
        ("quue", r"unknown attribute 'quue'; did you mean 'queue'\?; Mail has count"),
        ("delay", r"a row keeps no delay; compare run_at="),
    ],
)
@pytest.mark.parametrize("helper", [assert_enqueued, refute_enqueued, all_enqueued])
def test_unknown_names_are_refused(
    both: Kit, helper: Any, name: str, text: str
) -> None:
    """A name that no job of the class has is never a silent mismatch."""
    both.add(Mail(to="a"))

    with pytest.raises(TypeError, match=rf"{helper.__name__}\(Mail\): {text}"):
        both.call(helper, Mail, **{name: 3})


def test_classes_are_told_apart(both: Kit) -> None:
    """Another class, and another job table, are not looked at."""
    both.add(OtherTask(), Mail(to="a"))

    both.call(refute_enqueued, Task)
    both.call(refute_enqueued, Job, kind="other_task")
    both.call(assert_enqueued, OtherTask)


def test_values_are_fresh(both: Kit) -> None:
    """What a statement changed in a row counts, not what the object still says."""
    both.add(Mail(to="a"))
    both.flush()
    change = (
        update(Job).values(queue="new").execution_options(synchronize_session=False)
    )
    both.run(both.session.execute(change))

    assert both.call(assert_enqueued, Mail).queue == "new"


def test_payload_that_does_not_decode_differs(both: Kit) -> None:
    """A job with a broken payload is shown as such, and breaks no other match."""
    broken, fine = both.add(Always(n=1)), both.add(Always(n=2))
    both.flush()
    broken.payload = {"n": "three"}

    assert both.call(assert_enqueued, Always, n=2) is fine
    assert "Always.n" in message(both.call, assert_enqueued, Always, n=3)


def test_traceback_is_the_tests_own(sync: Kit) -> None:
    """No frame of the helpers is shown by pytest, only the line of the test."""
    with pytest.raises(AssertionError) as failed:
        assert_enqueued(sync.session, Mail)

    hidden = [entry.ishidden(failed) for entry in failed.traceback]
    assert hidden == [False] + [True] * (len(hidden) - 1)
    assert len(hidden) > 1


def test_job_class_is_checked(sync: Kit) -> None:
    """What is no job class is refused."""
    with pytest.raises(TypeError, match="is not a job class"):
        assert_enqueued(sync.session, Customer)  # type: ignore[type-var]


def test_session_is_checked(tables: Any) -> None:
    """What is no session is refused."""
    for helper in (assert_enqueued, refute_enqueued, all_enqueued):
        with pytest.raises(ValueError, match="needs the test's Session"):
            helper(tables, Mail)
    with Session(tables) as session:
        refute_enqueued(session, Mail, run_at=lambda at: at > AT + timedelta(1))
