"""The application's jobs, and how they get into the database."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta

from models import CrossReference, Import, Job, Module, Symbol
from parsing import find_module, read_source
from sqlalchemy import ForeignKey, insert, select
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from sqla_jobs import Arg, Context, JobState, Snooze, arg

FINAL = (JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED)


class IndexModule(Job, load="module"):
    """Write down what a module defines and imports."""

    # A foreign key and a relationship are arguments like any other. `load` above
    # brings the module along when the job is claimed.
    module_id: Mapped[int] = mapped_column(ForeignKey("modules.id"), index=True)
    module: Mapped[Module] = relationship()

    def run(self, ctx: Context) -> None:
        """Commit all rows together with the job's completion, or none of them."""
        module = self.module
        source = read_source(module.path, module.name)
        # A file that cannot be parsed is a fact about the file. Raising would be
        # wrong: the next attempt would find the same file.
        module.lines, module.error = source.lines, source.error
        for table, found in (Symbol, source.symbols), (Import, source.imports):
            rows = [one._asdict() | {"module_id": module.id} for one in found]
            if rows:
                ctx.session.execute(insert(table), rows)


class BuildCrossReference(Job, priority=-10):
    """Find the module each import leads to, once all modules are indexed."""

    slice_size: Arg[int] = arg(default=25)
    pause: Arg[float] = arg(default=0.0)  # seconds between slices, for other work

    def run(self, ctx: Context) -> Snooze | dict[str, int]:
        """Work in slices; each is committed with the place to go on from."""
        # Read before the first commit, which expires `self` as it does any object.
        size, pause = self.slice_size, self.pause
        if unindexed(ctx.session):
            return Snooze("modules left to index", after=timedelta(seconds=0.5))
        rows = ctx.session.execute(select(Module.name, Module.id)).tuples()
        modules = dict(rows.all())
        # After a crash the next attempt starts here, with what was saved last.
        while ids := next_modules(ctx.session, ctx.state.get("cursor", 0), size):
            found = cross_references(ctx.session, ids, modules)
            ctx.session.add_all(found)
            count = ctx.state.get("references", 0) + len(found)
            # One commit: the rows, the cursor, and the proof that the job is ours.
            ctx.checkpoint(cursor=ids[-1], references=count)
            time.sleep(pause)
        return {"references": ctx.state.get("references", 0)}


def unindexed(session: Session) -> bool:
    """
    Tell whether a module waits for its job.

    No module can slip through: all jobs were enqueued in one transaction, and a job
    leaves the unfinished states in the transaction that writes its rows.
    """
    waiting = select(IndexModule.id).where(IndexModule.state.not_in(FINAL)).limit(1)
    return session.scalar(waiting) is not None


def next_modules(session: Session, after: int, limit: int) -> list[int]:
    """Return the ids of the next modules."""
    query = select(Module.id).where(Module.id > after).order_by(Module.id).limit(limit)
    return list(session.scalars(query))


def cross_references(
    session: Session, ids: list[int], modules: dict[str, int]
) -> list[CrossReference]:
    """Return the cross-references of the modules *ids*."""
    imports = session.scalars(select(Import).where(Import.module_id.in_(ids)))
    targets = ((one.id, find_module(one.name, modules)) for one in imports)
    return [
        CrossReference(import_id=import_id, module_id=target)
        for import_id, target in targets
        if target is not None
    ]


def enqueue(
    session: Session, files: Iterable[tuple[str, str]], cross: BuildCrossReference
) -> None:
    """Add the modules and all jobs; whoever commits the session enqueues them."""
    for name, path in files:
        session.add(IndexModule(module=Module(name=name, path=path)))
    session.add(cross)
