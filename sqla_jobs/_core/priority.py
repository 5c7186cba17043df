"""Names for usual priorities."""

from __future__ import annotations

from typing import Final


class Priority:
    """
    Priorities by name; any whole number of -32,768 to 32,767 is one.

    Higher runs first, inside one queue. The steps between leave room for one's own.
    """

    LOW: Final = -10
    NORMAL: Final = 0  # of a class that states none
    HIGH: Final = 10
    URGENT: Final = 20
