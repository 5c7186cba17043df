"""Log lines for people: one line each on standard error, in colour on a terminal."""

from __future__ import annotations

import logging
import sys

FIELDS = ("job_id", "kind", "attempt", "queue")
STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red", "DEBUG": "dim"}


class LineFormatter(logging.Formatter):
    """Level, time, logger and message, then the fields of the job it is about."""

    def __init__(self) -> None:
        super().__init__("%(levelname)-8s %(asctime)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line; a traceback follows on lines of its own."""
        fields = " ".join(
            f"{name}={getattr(record, name)}"
            for name in FIELDS
            if hasattr(record, name)
        )
        line = super().formatMessage(record)
        return f"{line} [{fields}]" if fields else line


class TerminalHandler(logging.Handler):
    """Prints each level in its colour; rich knows what the terminal can show."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__()
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        from rich.text import Text

        try:
            text = Text(self.format(record))
            text.stylize(STYLES.get(record.levelname, "green"), 0, 8)
            self._console.print(text)
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)


def set_up_logging(level: str | None) -> None:
    """
    Log to standard error, unless the application has set up handlers of its own.

    Args:
        level: The least that is logged, "debug" to "critical". None is "info", and
            leaves levels that the application has set as they are.
    """
    root = logging.getLogger()
    if root.handlers:
        if level is not None:
            logging.getLogger("sqla_jobs").setLevel(level.upper())
        return
    handler: logging.Handler = (
        TerminalHandler() if sys.stderr.isatty() else logging.StreamHandler()
    )
    handler.setFormatter(LineFormatter())
    root.addHandler(handler)
    root.setLevel((level or "info").upper())
