"""Log lines on standard error: for people, in colour on a terminal, or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

FIELDS = ("job_id", "kind", "attempt", "queue")
STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red", "DEBUG": "dim"}
LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("text", "json")
MAX_TRACEBACK = 8_000  # characters, of its end: where the error is
_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

log = logging.getLogger("sqla_jobs")


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


class JsonFormatter(logging.Formatter):
    """One JSON object per record: what `extra` gave it has keys of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback is in it, its beginning cut off if long."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        extra = vars(record)
        line |= {key: extra[key] for key in extra if key not in _OF_EVERY_RECORD}
        if record.exc_info and record.exc_info[0] is not None:
            line["error_type"] = record.exc_info[0].__name__
            line["error_message"] = str(record.exc_info[1])[:MAX_TRACEBACK]
            text = self.formatException(record.exc_info)
            line["traceback"] = text[-MAX_TRACEBACK:]
        return json.dumps(line, default=str, ensure_ascii=False)


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


def set_up_logging(level: str | None, log_format: str | None = None) -> None:
    """
    Log to standard error, unless the application has set up handlers of its own.

    Args:
        level: The least that is logged, "debug" to "critical". None is "info", and
            leaves levels that the application has set as they are.
        log_format: "text", the default, or "json".
    """
    root = logging.getLogger()
    if root.handlers:
        if level is not None:
            log.setLevel(level.upper())
        if log_format is not None:
            log.warning(
                "the application has set up logging: --log-format %s has no effect",
                log_format,
            )
        return
    root.addHandler(_handler(log_format))
    root.setLevel((level or "info").upper())


def _handler(log_format: str | None) -> logging.Handler:
    if log_format == "json":
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        return handler
    handler = TerminalHandler() if sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    return handler
