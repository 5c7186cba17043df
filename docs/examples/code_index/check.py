"""Compares what the jobs wrote with a direct count that uses neither jobs nor SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs import BuildCrossReference
from models import CrossReference, Import, Job, Module, Symbol
from parsing import find_module, read_source
from sqlalchemy import Executable, func, select
from sqlalchemy.orm import Session, aliased

from sqla_jobs import JobState

Rows = Counter[tuple[Any, ...]]
SHOWN = 3  # differences of a sort


@dataclass
class Index:
    """All rows, and how often each is there."""

    modules: Rows = field(default_factory=Counter)
    symbols: Rows = field(default_factory=Counter)
    imports: Rows = field(default_factory=Counter)
    references: Rows = field(default_factory=Counter)


@dataclass
class Totals:
    """Sums over all jobs."""

    jobs: int
    completed: int
    attempts: int
    rescued: int


def count_directly(files: Iterable[tuple[str, str]]) -> Index:
    """Return the index of *files*, made in one plain loop."""
    files = list(files)
    modules = {name: name for name, _ in files}
    index = Index()
    for name, path in files:
        source = read_source(path, name)
        index.modules[name, path, source.lines, source.error] += 1
        index.symbols.update((path, *symbol) for symbol in source.symbols)
        index.imports.update((path, *one) for one in source.imports)
        for imported, line in source.imports:
            target = find_module(imported, modules)
            if target is not None:
                index.references[path, imported, line, target] += 1
    return index


def read_index(session: Session) -> Index:
    """Return the index that the jobs wrote."""
    path, target = Module.path, aliased(Module)
    modules = select(Module.name, path, Module.lines, Module.error)
    symbols = select(path, Symbol.kind, Symbol.name, Symbol.line)
    imports = select(path, Import.name, Import.line)
    references = select(path, Import.name, Import.line, target.name)

    def rows(query: Executable) -> Rows:
        return Counter(map(tuple, session.execute(query)))

    return Index(
        rows(modules),
        rows(symbols.join_from(Symbol, Symbol.module)),
        rows(imports.join_from(Import, Import.module)),
        rows(
            references.join_from(CrossReference, CrossReference.import_)
            .join(Import.module)
            .join(target, CrossReference.module)
        ),
    )


def read_totals(session: Session) -> Totals:
    """Return the sums over all jobs."""
    completed = func.count().filter(Job.state == JobState.COMPLETED)
    sums = func.sum(Job.attempt), func.sum(Job.crashes)
    return Totals(*session.execute(select(func.count(Job.id), completed, *sums)).one())


def differences(wanted: Index, found: Index) -> Iterator[str]:
    """Yield a line for each sort of row that is missing, or there too often."""
    for sort, want in vars(wanted).items():
        have = vars(found)[sort]
        for rows, problem in ((want - have, "missing"), (have - want, "too many")):
            if rows:
                examples = ", ".join(map(str, [*rows][:SHOWN]))
                yield f"{rows.total()} {sort} {problem}, such as {examples}"


def problems_of(
    session: Session, totals: Totals, found: Index, *, kill: bool
) -> Iterator[str]:
    """Yield a line for each thing about the jobs themselves that is wrong."""
    if totals.completed != totals.jobs:
        yield f"{totals.jobs - totals.completed} jobs did not complete"
    if kill and totals.rescued == 0:
        yield "a killed process held jobs, yet none was rescued"
    result = session.scalars(select(BuildCrossReference.result)).one()
    if result != {"references": found.references.total()}:
        yield f"the cross-reference says {result}, there are {found.references.total()}"
