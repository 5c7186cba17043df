"""How many jobs were completed when, around each failover: as text, CSV and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 0.1  # seconds per bar
BEFORE, AFTER = 2.0, 4.0  # seconds that are shown around a failover
BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Timeline:
    """
    Times of completions and of failovers, in seconds from the start.

    Args:
        done: When jobs were completed.
        kills: When a primary was killed.
    """

    done: Sequence[float]
    kills: Sequence[float]

    def counts(self, start: float, end: float) -> list[int]:
        """Return how many jobs were completed in each 100 ms from *start* to *end*."""
        found = [0] * max(1, round((end - start) / WIDTH))
        for at in self.done:
            bar = int((at - start) // WIDTH)
            if 0 <= bar < len(found):
                found[bar] += 1
        return found

    def gap(self, kill: float) -> float | None:
        """Return the seconds from a kill to the next completion; None without one."""
        # What had committed just before is read from the new primary, and is older.
        later = [at for at in self.done if at > kill]
        return min(later) - kill if later else None

    def line(self, kill: float) -> str:
        """Return the time around a failover as one line; "|" is the kill."""
        counts = self.counts(kill - BEFORE, kill + AFTER)
        most = max(counts) or 1
        top = len(BARS) - 1
        bars = [BARS[-(-count * top // most)] for count in counts]
        at = round(BEFORE / WIDTH)
        return "".join([*bars[:at], "|", *bars[at:]])

    def csv(self) -> str:
        """Return the whole run, a line per 100 ms."""
        lines = ["seconds,completed,killed"]
        end = max([*self.done, *self.kills], default=0.0)
        for number, count in enumerate(self.counts(0.0, end + WIDTH)):
            start = number * WIDTH
            killed = sum(start <= kill < start + WIDTH for kill in self.kills)
            lines.append(f"{start:.1f},{count},{killed}")
        return "\n".join(lines) + "\n"

    def svg(self) -> str:
        """Return a picture of all failovers, one below the other."""
        wide, high, bar = 720, 90, 720 * WIDTH / (BEFORE + AFTER)
        parts = []
        for row, kill in enumerate(self.kills):
            counts = self.counts(kill - BEFORE, kill + AFTER)
            most, floor = max(counts) or 1, (row + 1) * high
            for number, count in enumerate(counts):
                size = count * (high - 20) / most
                parts.append(
                    f'<rect x="{number * bar:.1f}" y="{floor - size:.1f}"'
                    f' width="{bar - 1:.1f}" height="{size:.1f}" fill="#4878a8"/>'
                )
            x = BEFORE / WIDTH * bar
            parts.append(
                f'<path d="M{x:.1f} {floor - high + 8}V{floor}" stroke="#c0392b"/>'
                f'<text x="{x + 4:.1f}" y="{floor - high + 16}" font-size="11"'
                f' font-family="sans-serif">primary killed; most {most} jobs'
                f" per {WIDTH * 1000:.0f} ms</text>"
            )
        area = f'width="{wide}" height="{high * len(self.kills) + 10}"'
        start = f'<svg xmlns="http://www.w3.org/2000/svg" {area}>'
        return "\n".join([start, *parts, "</svg>"]) + "\n"
