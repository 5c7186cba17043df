"""Texts that break careless programs, and each API that takes a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from sqla_jobs import (
    Claim,
    Prefix,
    cancel,
    checkpoint,
    claim,
    complete,
    counts,
    dead_letters,
    discard,
    enqueue,
    enqueue_many,
    enqueue_select,
    fail,
    find_queued,
    purge,
    request_cancel,
    requeue,
    rescue,
    set_queue,
    snooze,
)
from sqla_jobs._store.enqueue_kind import make_job
from sqla_jobs.models import job_tables
from tests.security.app import Job, Note

NASTY = [
    *("'", '"', "''", '"""', ";", "--", "/*", "\\", "\\'", "%", "%%", "%s", "%(x)s"),
    *(":name", "::text", "$1", "?", "{}", "{0}", "$$", "E'\\x41'", "NULL", "null"),
    *("'; DROP TABLE sec_jobs; --", '"; DROP TABLE sec_jobs; --', "1 OR 1=1"),
    *("\0", "a\0b", "\ud800", "a\udfffb", "\x7f", "\x1b[31m", "\r\n", "\t", " ", ""),
    *("\U0001f600", "\u202egnp.exe", "\ufeff", "\u0000\ud800", "I\u0307", "\uffff"),
    *("x" * 200, "x" * 201, "x" * 500, "\u00e9" * 100, "\u00e9" * 101, "x" * 70_000),
    *("[1]", '{"prefix": "a"}', '["q", "c"]', "a,b", "../../etc/passwd", "<b>&amp;"),
]
"""Quotes, placeholders, comments, what UTF-8 or PostgreSQL cannot hold, and limits."""

texts = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(), max_size=500),
    st.text(st.sampled_from("'\";\\%:$\0\ud800\U0001f600é a1{}"), max_size=20),
)
"""Any text, more often a nasty one."""

Use = Callable[[Session, str], Any]
"""Uses a text; returns (what is stored, what should be), or None."""


def storable(text: str) -> bool:
    """Return whether UTF-8 and PostgreSQL can hold the text."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def nameable(text: str) -> bool:
    """Return whether a queue may be called so."""
    return storable(text) and 0 < len(text.encode()) <= 200


def put(session: Session, **values: Any) -> Any:
    """Store a job, and return it as another session would see it."""
    job = Note(**values)
    session.add(job)
    session.flush()
    session.expire(job)
    return job


def column(name: str) -> Use:
    """Return what stores the text in a column of a job."""

    def use(session: Session, text: str) -> Any:
        return getattr(put(session, **{name: text}), name), text

    return use


def queue(session: Session, text: str) -> Any:
    """Enqueue in a queue and claim from it."""
    job = put(session, queue=text)
    (claimed,) = claim(session, Job, queues=[text])
    return (claimed.job_id, claimed.queue, job.queue), (job.id, text, text)


def channel(session: Session, text: str) -> Any:
    """Enqueue in a channel, ordered, and claim from it."""
    job = put(session, queue="ordered", channel=text, ordered=True)
    (claimed,) = claim(session, Job, queues=[("ordered", text)])
    return (claimed.job_id, job.channel), (job.id, text)


def key(session: Session, text: str) -> Any:
    """Enqueue twice with a unique key."""
    job = put(session, unique_key=text)
    again = enqueue(session, Note(unique_key=text), on_conflict="return")
    return (job.unique_key, again.job_id), (text, job.id)


def idempotency(session: Session, text: str) -> Any:
    """Enqueue twice with an idempotency key."""
    first = enqueue(session, Note(), idempotency_key=text)
    again = enqueue(session, Note(), idempotency_key=text)
    return again.job_id, first.job_id


def raw(session: Session, text: str) -> Any:
    """Enqueue a job of that kind; there is no such class."""
    make_job(Job, text, {})


def bulk(session: Session, text: str) -> Any:
    """Enqueue many."""
    rows = [{"text": text, "queue": "bulk", "tags": [text]}] * 3
    enqueue_many(session, Note, rows)
    found = session.scalars(select(Note).where(Note.queue == "bulk")).all()
    return [(one.text, one.tags) for one in found], [(text, [text])] * 3


def from_query(session: Session, text: str) -> Any:
    """Enqueue from a query."""
    ids = select(job_tables(Job).table.c.id).limit(1)
    enqueue_select(session, Note, ids, {"text": text, "queue": "selected"})
    found = session.scalars(select(Note).where(Note.queue == "selected")).all()
    return [one.text for one in found], [text]


def argument(session: Session, text: str) -> Any:
    """Store an argument, and find the job by it."""
    job = put(session, text=text)
    found = session.scalars(select(Note.id).where(Note.text == text)).all()
    return (job.text, job.id in found), (text, True)


def payload(session: Session, text: str) -> Any:
    """Store keys and values in a payload."""
    job = put(session, payload={text: {text: [text]}})
    return job.payload[text], {text: [text]}


def inserted(session: Session, text: str) -> Any:
    """Insert by a statement of the application's."""
    made = insert(Note).returning(Note.id)
    session.execute(made, [{"payload": {"text": "x"}, "channel": text[:200] or "x"}])


def held(session: Session) -> Claim:
    """Claim a new job."""
    put(session, queue="held")
    (claimed,) = claim(session, Job, queues=["held"])
    return claimed


def result(session: Session, text: str) -> Any:
    """Complete with a result."""
    claimed = held(session)
    complete(session, claimed, {text: text})
    return row(session, claimed).result, {text: text}


def state(session: Session, text: str) -> Any:
    """Save a checkpoint."""
    claimed = held(session)
    checkpoint(session, claimed, {text: text})
    return row(session, claimed).checkpoint, {text: text}


def row(session: Session, claimed: Claim) -> Any:
    """Return a claimed job as it is now."""
    session.expire_all()
    return session.get(Job, claimed.job_id)


def told(verb: Callable[..., Any], name: str, **options: Any) -> Use:
    """Return what ends a claim with a text, which is kept in column *name*."""

    def use(session: Session, text: str) -> Any:
        claimed = held(session)
        verb(session, claimed, **options, **{_KEYWORDS[verb]: text})
        kept = getattr(row(session, claimed), name)
        fits = storable(text) and len(text.encode()) <= 1_000 and text
        return (kept, text) if fits else (isinstance(kept, str | None), True)

    return use


_KEYWORDS: dict[Any, str] = {
    **dict.fromkeys((cancel, discard, snooze), "reason"),
    fail: "error",
}


def asked(session: Session, text: str) -> Any:
    """Cancel a job with a reason."""
    job = put(session)
    request_cancel(session, Job, job.id, reason=text)


def changed(session: Session, text: str) -> Any:
    """Requeue a job with other values."""
    job = put(session)
    request_cancel(session, Job, job.id)
    changes = {"text": text, "queue": "changed", "tags": [text]}
    requeue(session, Note, job.id, changes=changes)
    session.expire_all()
    return (job.text, job.tags, job.queue), (text, [text], "changed")


STORED: dict[str, Use] = {
    "queue": queue,
    "channel": channel,
    "unique_key": key,
    "fingerprint": column("fingerprint"),
    "tags": lambda s, t: (put(s, tags=[t]).tags, [t]),
    "meta": lambda s, t: (put(s, meta={t: t}).meta, {t: t}),
    "payload": payload,
    "argument": argument,
    "bytes": lambda s, t: (
        put(s, payload_bytes=t.encode(errors="surrogatepass")).payload_bytes,
        t.encode(errors="surrogatepass"),
    ),
    "idempotency_key": idempotency,
    "kind": raw,
    "enqueue_many": bulk,
    "enqueue_select": from_query,
    "result": result,
    "checkpoint": state,
    "error": told(fail, "last_error"),
    "discard": told(discard, "reason"),
    "cancel": told(cancel, "reason"),
    "snooze": told(snooze, "reason", after=timedelta(seconds=1)),
    "request_cancel": asked,
    "changes": changed,
}
"""What stores a text."""

ASKED: dict[str, Use] = {
    "claim": lambda s, t: claim(s, Job, queues=[t], kinds=[t]),
    "claim a channel": lambda s, t: claim(s, Job, queues=[(t, t)]),
    "claim a prefix": lambda s, t: claim(s, Job, queues=[Prefix(t)]),
    "rescue": lambda s, t: rescue(s, Job, queues=[t]),
    "counts": lambda s, t: counts(s, Job, queues=[t]),
    "dead_letters": lambda s, t: dead_letters(s, Job, reason=t, queues=[t], kinds=[t]),
    "purge": lambda s, t: purge(s, Job, queues=[t], states=["completed"]),
    "cancel a key": lambda s, t: request_cancel(s, Job, unique_key=t),
    "cancel a group": lambda s, t: request_cancel(s, Job, fingerprint=t),
    "find a key": lambda s, t: find_queued(s, Job, unique_key=t),
    "find a group": lambda s, t: find_queued(s, Job, fingerprint=t),
    "find alike": lambda s, t: find_queued(s, Note(payload={t: t})),
    "set_queue": lambda s, t: set_queue(s, Job, t, paused=True, must_exist=False),
    "set_queue of none": lambda s, t: set_queue(s, Job, t, paused=True),
    "on_discard": lambda s, t: set_queue(s, Job, "default", on_discard=t),
    "on_conflict": lambda s, t: enqueue(s, Note(unique_key="k"), on_conflict=t),
    "states": lambda s, t: purge(s, Job, states=[t]),
    "ids": lambda s, t: requeue(s, Job, cast("Any", t)),
    "json": lambda s, t: make_job(Job, "note", {"text": json.dumps(t)}),
}
"""What looks for a text, or takes it for an option."""
