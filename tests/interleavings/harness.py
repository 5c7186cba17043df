"""Runs scripts of several sessions in every order that a real server lets them have."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs._dialects import JobDialect
from sqla_jobs.errors import SqlaJobsError
from tests.conformance.factories import Base

GLANCE = 0.005  # seconds a step has before the server is asked whether it waits
PATIENCE = 30.0  # seconds until a step that neither ends nor waits is a failure
MOST_ACTORS = 4

Script = Generator[None]
"""What one session does: each ``yield`` is a place where others may come between."""


@dataclass
class Scene:
    """
    One interleaving: what its scripts found out and committed, in that order.

    Args:
        verbs: What the scripts call; a broken twin replaces one of them.
    """

    verbs: Any
    log: list[tuple[Any, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def commit(self, session: Session, *events: tuple[Any, ...]) -> None:
        """Commit, then note what thereby happened."""
        session.commit()
        self.log.extend(events)


@dataclass(frozen=True)
class Twin:
    """
    A guard is taken away, which must be caught.

    Args:
        verbs: What takes the place of verbs of the scripts, by name.
        patches: Context managers for the time of its runs.
    """

    verbs: Mapping[str, Any] = field(default_factory=dict)
    patches: Sequence[AbstractContextManager[Any]] = ()


@dataclass(frozen=True)
class Scenario:
    """
    What is interleaved.

    Args:
        prepare: Makes the rows before each run.
        scripts: What each session does, by its name.
        check: Says what is wrong with what came of a run, and deletes the rows.
        verbs: A NamedTuple of what the scripts call.
        twins: Broken ones, by name.
    """

    prepare: Callable[[Session, Scene], None]
    scripts: Mapping[str, Callable[[Session, Scene], Script]]
    check: Callable[[Session, Scene], Iterator[str]]
    verbs: Any
    twins: Mapping[str, Twin] = field(default_factory=dict)


@dataclass
class Found:
    """How many interleavings there were, and how they that were wrong came about."""

    count: int = 0
    wrong: list[str] = field(default_factory=list)


class Actor(threading.Thread):
    """A session on a connection of its own; takes one step whenever it is told to."""

    def __init__(self, engine: Engine, answers: SimpleQueue[Actor]) -> None:
        super().__init__(daemon=True)
        self.connection = engine.connect()
        raw: Any = self.connection.connection.dbapi_connection
        self.pid: int = raw.info.backend_pid
        self.answers, self.told = answers, SimpleQueue[bool]()
        self.over = True
        self.name_ = ""
        self.start()

    def play(self, name: str, script: Any, scene: Scene) -> None:
        """Begin with *script*, without a step yet."""
        self.name_, self.scene, self.over = name, scene, False
        self.session = Session(self.connection, expire_on_commit=False)
        self.script: Script = script(self.session, scene)

    def run(self) -> None:
        """Take steps."""
        while self.told.get():
            try:
                next(self.script)
            except StopIteration:
                self._end()
            except SqlaJobsError as exc:
                self.scene.log.append((type(exc).__name__, self.name_))
                self._end()
            except DBAPIError as exc:
                self._end()
                state = JobDialect.sqlstate(exc)
                self.scene.problems.append(f"{self.name_}: {state} {exc.orig}")
            except BaseException as exc:  # noqa: BLE001 - the conductor reports it
                self._end()
                self.scene.problems.append(f"{self.name_}: {exc!r}")
            self.answers.put(self)

    def _end(self) -> None:
        self.over = True
        self.session.close()

    def stop(self) -> None:
        """End the thread."""
        self.told.put(False)
        self.join(PATIENCE)
        self.connection.close()


_Run = tuple[list[str], list[tuple[int, int]]]
"""What a run was or what was wrong with it, and (chosen, choices) of each step."""


class Conductor:
    """Runs scenarios with a few sessions that it keeps."""

    def __init__(self, engine: Engine) -> None:
        self.answers = SimpleQueue[Actor]()
        self.actors = [Actor(engine, self.answers) for _ in range(MOST_ACTORS)]
        self.session = Session(engine, expire_on_commit=False)
        url = engine.url.set(drivername="postgresql")
        dsn = url.render_as_string(hide_password=False)
        self.watch = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        """End all sessions."""
        for actor in self.actors:
            actor.stop()
        self.session.close()
        self.watch.close()

    def explore(
        self, scenario: Scenario, twin: str | None = None, *, first: bool = False
    ) -> Found:
        """
        Run every interleaving once.

        Args:
            twin: The broken twin to run instead.
            first: Whether to stop at the first that went wrong.
        """
        broken = Twin() if twin is None else scenario.twins[twin]
        verbs = scenario.verbs._replace(**broken.verbs)
        with ExitStack() as stack:
            for patch in broken.patches:
                stack.enter_context(patch)
            return self._explore(partial(self._run, scenario, verbs), first=first)

    @staticmethod
    def _explore(run: Callable[[Sequence[int]], _Run], *, first: bool) -> Found:
        found, prefix = Found(), list[int]()
        while True:
            wrong, trace = run(prefix)
            found.count += 1
            found.wrong += wrong[:1]
            while trace and trace[-1][0] + 1 == trace[-1][1]:
                trace.pop()
            if not trace or (first and wrong):
                return found
            prefix = [chosen for chosen, _ in trace]
            prefix[-1] += 1

    def _run(self, scenario: Scenario, verbs: Any, prefix: Sequence[int]) -> _Run:
        """Run one."""
        random.seed(0)  # of claims
        scene = Scene(verbs)
        scenario.prepare(self.session, scene)
        self.session.commit()
        cast = dict(zip(scenario.scripts, self.actors, strict=False))
        for name, actor in cast.items():
            actor.play(name, scenario.scripts[name], scene)
        steps, trace = self._interleave(list(cast.values()), prefix)
        wrong = [*scene.problems, *scenario.check(self.session, scene)]
        self.session.commit()
        return [f"{' '.join(steps)}: {one}; {scene.log}" for one in wrong], trace

    def _interleave(self, actors: Sequence[Actor], prefix: Sequence[int]) -> _Run:
        trace: list[tuple[int, int]] = []
        steps: list[str] = []
        waiting: set[Actor] = set()
        while True:
            ready = [a for a in actors if not a.over and a not in waiting]
            if not ready and not waiting:
                return steps, trace
            fresh = None
            if ready:
                chosen = prefix[len(trace)] if len(trace) < len(prefix) else 0
                chosen = min(chosen, len(ready) - 1)  # a deadlock took its time
                trace.append((chosen, len(ready)))
                fresh = ready[chosen]
                steps.append(fresh.name_)
                waiting.add(fresh)
                fresh.told.put(True)
            self._until_quiet(waiting, [actor.pid for actor in actors], fresh)

    def _until_quiet(
        self, waiting: set[Actor], pids: Sequence[int], fresh: Actor | None
    ) -> None:
        """
        Wait until each of *waiting* is done, or the server says that it waits.

        Without a *fresh* one all wait for each other, so the server will end one.
        """
        until = monotonic() + PATIENCE
        least = len(waiting) if fresh else len(waiting) - 1
        looked = False
        while monotonic() < until:
            while waiting:
                # Whoever waited before has to be asked after now.
                hurry = not looked and fresh not in waiting
                try:
                    done = self.answers.get(timeout=0 if hurry else GLANCE)
                except Empty:
                    break
                waiting.remove(done)
            settled = len(waiting) <= least
            settled = settled and all(self._is_blocked(one, pids) for one in waiting)
            if settled and self.answers.empty():
                return
            looked = True
        raise AssertionError(f"a step hangs: {[one.name_ for one in waiting]}")

    def _is_blocked(self, actor: Actor, pids: Sequence[int]) -> bool:
        query = "SELECT pg_isolation_test_session_is_blocked(%s, %s)"
        row = self.watch.execute(query, (actor.pid, list(pids))).fetchone()
        return row is not None and bool(row[0])


@contextmanager
def conducting(dsn: str) -> Iterator[Conductor]:
    """Yield a `Conductor` on new tables, which are gone afterwards."""
    schema = f"interleavings_{uuid4().hex[:12]}"
    # A deadlock is a failure: let it come soon.
    soon = {"connect_args": {"options": "-c deadlock_timeout=20ms"}}
    plain = create_engine(dsn, **soon)
    engine = plain.execution_options(schema_translate_map={None: schema})
    with engine.begin() as connection:
        connection.execute(CreateSchema(schema))
    Base.metadata.create_all(engine)
    conductor = Conductor(engine)
    try:
        yield conductor
    finally:
        conductor.close()
        with engine.begin() as connection:
            connection.execute(DropSchema(schema, cascade=True))
        plain.dispose()
