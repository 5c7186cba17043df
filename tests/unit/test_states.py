"""The transition table, the sets made from it, and its diagram."""

from __future__ import annotations

import pytest

from sqla_jobs._core.states import (
    CANCELLABLE,
    FINAL,
    LIVE,
    TRANSITIONS,
    WAITING,
    JobState,
    Lane,
    diagram,
)

MOVES = [
    (source, target, verb)
    for source, targets in TRANSITIONS.items()
    for target, verb in targets.items()
]


def _sources(verb: str) -> set[JobState]:
    return {source for source, _, verbs in MOVES if verb in verbs.split(", ")}


def _targets(verb: str) -> set[JobState]:
    return {target for _, target, verbs in MOVES if verb in verbs.split(", ")}


@pytest.mark.parametrize(
    ("verb", "sources", "targets"),
    [
        ("stage", WAITING, {JobState.AVAILABLE}),
        ("claim", {JobState.AVAILABLE}, {JobState.RUNNING}),
        ("complete", {JobState.RUNNING}, {JobState.COMPLETED}),
        ("retry", {JobState.RUNNING}, {JobState.RETRYABLE}),
        ("snooze", {JobState.RUNNING}, {JobState.SCHEDULED}),
        ("discard", {JobState.RUNNING}, {JobState.DISCARDED}),
        ("release", {JobState.RUNNING}, {JobState.AVAILABLE}),
        ("rescue", {JobState.RUNNING}, {JobState.AVAILABLE}),
        ("cancel", CANCELLABLE | {JobState.RUNNING}, {JobState.CANCELLED}),
        ("confirm", {JobState.HELD}, {JobState.AVAILABLE, JobState.SCHEDULED}),
        ("abort", {JobState.HELD}, {JobState.CANCELLED}),
        ("expire", {JobState.HELD}, {JobState.CANCELLED}),
        ("requeue", FINAL, {JobState.AVAILABLE}),
    ],
)
def test_verb_moves_between_its_states(
    verb: str, sources: set[JobState], targets: set[JobState]
) -> None:
    """Each verb leaves and reaches exactly the states it is meant for."""
    assert _sources(verb) == sources
    assert _targets(verb) == targets


def test_table_knows_no_other_verbs_and_every_state() -> None:
    """Every state is left and reached; the verbs are the ones tested above."""
    verbs = {verb for _, _, verbs in MOVES for verb in verbs.split(", ")}

    assert set(TRANSITIONS) == set(JobState)
    # A job is held from its enqueue on, or never.
    assert {target for _, target, _ in MOVES} == set(JobState) - {JobState.HELD}
    assert verbs == {
        *("stage", "claim", "complete", "retry", "snooze"),
        *("discard", "release", "rescue", "cancel", "requeue"),
        *("confirm", "abort", "expire"),
    }


def test_no_state_leads_to_itself() -> None:
    """A move always changes the state; keeping one is no transition."""
    assert all(source != target for source, target, _ in MOVES)


def test_final_and_live_are_a_partition() -> None:
    """Every state is final or live, never both, and the waiting ones are live."""
    assert set(JobState) == FINAL | LIVE
    assert not FINAL & LIVE
    assert {JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED} == FINAL
    assert WAITING < CANCELLABLE < LIVE
    assert {JobState.RUNNING} == LIVE - CANCELLABLE


def test_states_read_as_their_stored_text() -> None:
    """A state is its lower-case name, in a column as in a message."""
    assert [f"{state}" for state in JobState] == [
        state.name.lower() for state in JobState
    ]


def test_lanes_rank_fresh_before_retried_before_rescued() -> None:
    """The claim orders by lane, smallest first."""
    assert Lane.FRESH < Lane.RETRIED < Lane.RESCUED


def test_diagram_draws_each_transition_once() -> None:
    """The diagram is the table: entries, moves and the end of final states."""
    lines = diagram().splitlines()
    moves = {f"    {source} --> {target}: {verb}" for source, target, verb in MOVES}
    ends = {f"    {state} --> [*]: purge" for state in FINAL}
    starts = {line for line in lines if line.startswith("    [*] --> ")}

    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == len(set(lines))
    assert set(lines[1:]) == moves | ends | starts
    assert {line.split()[2].rstrip(":") for line in starts} == {
        "scheduled",
        "available",
        "held",
    }
