"""
Break the library in one place at a time, and see the model notice.

``SQLA_JOBS_TEST_DSN=... python -m tests.model.twins [NAME ...]`` prints how many random
runs each twin took, of those that CI has. Before a release; not a test of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ("tests/conftest.py", "tests/documents.py", "tests/drivers", "tests/model")

TWINS = {
    "an outcome needs no token": (
        "settle.py",
        "            job.lease_token == given.c.token,\n",
        "",
    ),
    "an outcome needs no running job": (
        "settle.py",
        "            is_running(job.state),\n        )\n        .order_by(job.id)",
        "        )\n        .order_by(job.id)",
    ),
    "a checkpoint needs no token": (
        "lease.py",
        (
            '            job.lease_token == bind("token", BigInteger()),\n'
            "            is_running(job.state),\n        )\n        .values("
        ),
        "            is_running(job.state),\n        )\n        .values(",
    ),
    "a renewal does not tell what is lost": (
        "lease.py",
        "        lost=missing - kept,\n",
        "        lost=frozenset(),\n",
    ),
    "a lost lease keeps the transaction": (
        "verbs.py",
        "    session.rollback()\n    return LeaseLost(",
        "    return LeaseLost(",
    ),
    "a rescue keeps the token": (
        "sweep.py",
        "            lease_token=job.lease_token + 1,\n",
        "",
    ),
    "a rescue forgets the request to cancel": (
        "sweep.py",
        'conditions = {"cancel_requested": wanted,',
        'conditions = {"cancel_requested": literal(False),',
    ),
    "the last attempt may crash": (
        "sweep.py",
        "exhausted = job.attempt >= job.max_attempts",
        "exhausted = job.attempt > job.max_attempts",
    ),
    "a retry keeps its lane": (
        "settle.py",
        "lane=case((is_retry, literal_column(str(Lane.RETRIED))), else_=job.lane)",
        "lane=job.lane",
    ),
    "a release costs an attempt": (
        "settle.py",
        'back = is_snooze | (new.action == word("release"))',
        "back = is_snooze",
    ),
    "a failure forgets the request to cancel": (
        "settle.py",
        '"cancel_requested": job.cancel_requested_at.is_not(null()),',
        '"cancel_requested": job.id.is_(null()),',
    ),
    "a waiting job is only asked to end": (
        "operate.py",
        "waiting = job.state.in_(literal_states(CANCELLABLE))",
        "waiting = job.state.in_(literal_states(CANCELLABLE - {JobState.HELD}))",
    ),
    "a requeued job takes a key that is taken": (
        "operate.py",
        ".where(among(job.id, locked), ~_key_taken(tables), _first_of_key(tables))",
        ".where(among(job.id, locked), _first_of_key(tables))",
    ),
    "a requeued job keeps its crashes": (
        "operate.py",
        "        job.crashes: 0,\n",
        "",
    ),
    "a hold that is over is confirmed": (
        "holds.py",
        "        good = and_(good, ~locked.c.over)\n",
        "        pass\n",
    ),
    "holds expire before their time": (
        "holds.py",
        "job.held_until <= dialect.now())\n        .order_by",
        "job.held_until > dialect.now())\n        .order_by",
    ),
    "any job of a channel is a head": (
        "head_rows.py",
        "            job.id == first,\n",
        "",
    ),
    "a dead head blocks nothing": (
        "head_rows.py",
        "            dead.state == word(JobState.DISCARDED),\n",
        "            dead.state == word(JobState.HELD),\n",
    ),
    "late jobs of any lane come first": (
        "pick.py",
        "return (job.priority.desc(), job.lane, job.run_at, job.id)",
        "return (job.priority.desc(), job.run_at, job.id)",
    ),
    "a pause is no pause": (
        "pick.py",
        "closed = or_(queue.paused, is_managed(tables)) if plain else queue.paused",
        "closed = is_managed(tables) if plain else literal(False)",
    ),
    "a limit does not count what runs": (
        "managed.py",
        "running=room.running.total(),",
        "running=0,",
    ),
    "jobs are staged before their time": (
        "sweep.py",
        ".where(waiting, job.run_at <= dialect.now())\n        .order_by",
        ".where(waiting)\n        .order_by",
    ),
    "purge ignores the state": (
        "retention.py",
        '            job.state == func.any(bind("states", ARRAY(Text()))),\n',
        '            literal("") != func.all(bind("states", ARRAY(Text()))),\n',
    ),
    "retention ignores the age": (
        "retention.py",
        '            job.finished_at <= dialect.now() - bind("age", Interval()),\n',
        "",
    ),
    "a duplicate is inserted after a replacement of a running job": (
        "unique.py",
        "    must_raise = or_(refused, and_(replaced, state == running))\n",
        "    must_raise = refused\n",
    ),
    "an idempotency key stands for ever": (
        "idempotency.py",
        "    expired = entry.expires_at <= dialect.now()\n",
        "    expired = entry.expires_at.is_(None)\n",
    ),
}
"""By what the twin does wrong: a file of the store, what is there, and instead."""


def main(names: list[str]) -> int:
    """Run the twins and print a line for each; return how many were not caught."""
    missed = 0
    for name in names or TWINS:
        started = time.monotonic()
        found = run(name)
        missed += found is None
        seconds = time.monotonic() - started
        answer = "NOT CAUGHT" if found is None else f"caught in run {found}"
        print(f"{name:<60} {answer:<20} {seconds:5.0f} s", flush=True)
    return missed


def run(name: str) -> int | None:
    """Return the random run that caught this twin, None if none did."""
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder)
        shutil.copytree(ROOT / "sqla_jobs", twin / "sqla_jobs")
        shutil.copy(ROOT / "pyproject.toml", twin)
        (twin / "tests").mkdir()
        for one in NEEDED:
            (twin / one).symlink_to(ROOT / one)
        _break(twin, *TWINS[name])
        environment = os.environ | {"SQLA_JOBS_MODEL_FAST": "1", "PYTHONPATH": folder}
        answer = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/model/test_model.py"],
            cwd=twin, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if answer.returncode == 0:
        return None
    runs = re.search(r"^(\d+) runs$", answer.stdout, re.MULTILINE)
    if runs is None:
        raise SystemExit(f"{name}: {answer.stdout[-2000:]}{answer.stderr[-2000:]}")
    why = re.search(r"^E +(\S.*)$", answer.stdout, re.MULTILINE)
    print(f"    {why[1][:150] if why else ''}", flush=True)
    return int(runs[1])


def _break(twin: Path, file: str, old: str, new: str) -> None:
    path = twin / "sqla_jobs" / "_store" / file
    source = path.read_text()
    if source.count(old) != 1:
        raise SystemExit(f"{file} has {source.count(old)} times, not once: {old!r}")
    path.write_text(source.replace(old, new))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
