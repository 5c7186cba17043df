"""Fixtures of the interleavings: sessions on tables of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interleavings.harness import Conductor, conducting


@pytest.fixture(scope="session")
def conductor(dsn: str) -> Iterator[Conductor]:
    """Yield what runs the scenarios."""
    with conducting(dsn) as conductor:
        yield conductor


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a class with each of its scenarios, and each twin of these."""
    scenarios = getattr(metafunc.cls, "scenarios", {})
    if "twin" in metafunc.fixturenames:
        twins = [(name, twin) for name in scenarios for twin in scenarios[name].twins]
        metafunc.parametrize(("name", "twin"), twins)
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", scenarios)
