"""The public API does what the documentation says, whatever is called in what order."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine

from tests.model.machine import Machine

EXAMPLES = int(os.environ.get("SQLA_JOBS_MODEL_EXAMPLES", "50"))
"""How many random runs; before a release some thousands."""

STEPS = int(os.environ.get("SQLA_JOBS_MODEL_STEPS", "50"))
SHRINK = not os.environ.get("SQLA_JOBS_MODEL_FAST")

SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    derandomize=False,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.generate, *([Phase.shrink] if SHRINK else [])],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_api_agrees_with_the_oracle(model_engine: Engine) -> None:
    """No sequence of calls leaves the tables other than the documentation says."""
    Machine.engine = model_engine
    try:
        run_state_machine_as_test(Machine, settings=SETTINGS)
    finally:
        print(f"{Machine.runs} runs")
