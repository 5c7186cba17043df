"""What a system kept of its promises, counted on what is left after a run; pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

SLACK = 0.1  # seconds two clocks' readings may differ by


@dataclass(frozen=True)
class Attempt:
    """When a handler ran; *end* is infinite if it never came back."""

    start: float
    end: float = float("inf")


@dataclass(frozen=True)
class Final:
    """An outcome in the system's tables."""

    job: int
    succeeded: bool
    at: float


@dataclass
class Traces:
    """What there is after a run."""

    numbers: Mapping[int, int]
    """The errands that were accepted, by job."""
    finals: Sequence[Final]
    left: Collection[int]
    """Jobs without an outcome."""
    postings: Iterable[tuple[int, str]]
    """Errand and step of each effect."""
    attempts: Mapping[int, Sequence[Attempt]] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """
    What went wrong.

    Args:
        lost: Jobs that are gone, or succeeded without their effects.
        stuck: Jobs that were not run again.
        double: Jobs with an effect that is there twice or more.
        wrong: Jobs that failed although their effects are there, or whose outcome was
            written while somebody else still ran them.
    """

    jobs: int
    lost: int
    stuck: int
    double: int
    wrong: int


def count(traces: Traces) -> Counts:
    """Return the counts."""
    effects: dict[int, Counter[str]] = defaultdict(Counter)
    for number, step in traces.postings:
        effects[number][step] += 1
    finals: dict[int, list[Final]] = defaultdict(list)
    for final in traces.finals:
        finals[final.job].append(final)
    lost = double = wrong = 0
    for job, number in traces.numbers.items():
        done, ends = effects[number], finals[job]
        double += any(times > 1 for times in done.values())
        if job not in traces.left:
            good = any(end.succeeded for end in ends)
            lost += not ends or (good and not done)
            ran = traces.attempts.get(job, ())
            wrong += bool(done and ends and not good) or _too_early(ends, ran)
    stuck = len(traces.numbers.keys() & set(traces.left))
    return Counts(len(traces.numbers), lost, stuck, double, wrong)


def _too_early(ends: Sequence[Final], attempts: Sequence[Attempt]) -> bool:
    """Whether the outcome was written before the last holder was through."""
    if not ends or not attempts:
        return False
    at, last = ends[-1].at, max(attempts, key=lambda one: one.start)
    return last.start + SLACK < at < last.end - SLACK
