"""The timeline of a failover: what is counted, drawn and written."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from tests.failover.timeline import Timeline

STEADY = [n / 10 + 0.05 for n in range(20)]
BACK = [2.75 + n / 10 for n in range(30)]
RUN = Timeline([*STEADY, 2.76, *BACK], [2.0])


def test_counts_are_per_tenth_of_a_second() -> None:
    """What lies outside is in no bar."""
    assert RUN.counts(1.8, 3.0) == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1]


def test_gap_lasts_until_the_next_completion() -> None:
    """What had been completed before the kill does not end it."""
    assert RUN.gap(2.0) == 0.75
    assert RUN.gap(99.0) is None


def test_line_shows_the_kill() -> None:
    """Half a bar for one job where the most were two; nothing while all was down."""
    line = RUN.line(2.0)

    assert line[:29] == "▄" * 20 + "|" + " " * 7 + "█"
    assert len(line) == 61


def test_files_hold_the_same() -> None:
    """A line per tenth of a second, and a picture that browsers can read."""
    lines = RUN.csv().splitlines()
    picture = ET.fromstring(RUN.svg())

    assert lines[:2] == ["seconds,completed,killed", "0.0,1,0"]
    assert lines[21] == "2.0,0,1"
    bars = [one for one in picture if one.tag.endswith("rect")]
    assert len(bars) == 60
    heights = [bar.get("height") for bar in bars]
    assert heights[18:30] == ["35.0"] * 2 + ["0.0"] * 7 + ["70.0", "35.0", "35.0"]
