"""What is true of every scenario."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest

from tests.interleavings.harness import Conductor, Scenario


class Interleavings:
    """The tests of the *scenarios* that a class under it names."""

    scenarios: ClassVar[Mapping[str, Scenario]]

    @pytest.mark.slow
    def test_every_order_keeps_the_promises(
        self, conductor: Conductor, name: str
    ) -> None:
        """No order of these steps breaks a promise, fails or ends in a deadlock."""
        found = conductor.explore(self.scenarios[name])

        print(f"{found.count} interleavings")
        assert found.wrong == []
        assert found.count > 1

    def test_broken_twin_is_caught(
        self, conductor: Conductor, name: str, twin: str
    ) -> None:
        """Without that guard some order of the same steps breaks a promise."""
        assert conductor.explore(self.scenarios[name], twin, first=True).wrong
