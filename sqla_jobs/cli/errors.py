"""Errors that end a command: one line for the user, and an exit status."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import IO, Any

import click
import sqlalchemy

from sqla_jobs.errors import SqlaJobsError

_OURS = str(Path(__file__).parents[1]) + os.sep
_IMPORT_MODULE = str(Path("importlib", "__init__.py"))
_SQLALCHEMY = str(Path(sqlalchemy.__file__).parent) + os.sep


class TargetError(click.ClickException):
    """What the command names cannot be used; *detail* is printed above the message."""

    exit_code = 2

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the detail, then one line."""
        if self.detail:
            click.echo(self.detail, file=file, nl=False, err=file is None)
        super().show(file)


class RuntimeFailure(click.ClickException):
    """Running cannot go on, for a reason that one line tells."""

    exit_code = 1


def user_traceback(exc: BaseException) -> str:
    """
    Return the traceback of *exc* from the first frame of the application's code on.

    An error that this library raises ends with the application's last frame.
    """
    found = traceback.TracebackException.from_exception(exc)
    found.stack = traceback.StackSummary.from_list(user_frames(exc))
    return "".join(found.format())


def user_frames(exc: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of *exc* without those that led to the application's code."""
    frames = list(traceback.extract_tb(exc.__traceback__))
    while frames and _leads_in(frames[0].filename):
        del frames[0]
    if isinstance(exc, SqlaJobsError):
        while frames and frames[-1].filename.startswith((_OURS, _SQLALCHEMY)):
            del frames[-1]
    return frames


def _leads_in(filename: str) -> bool:
    ours = filename.startswith((_OURS, "<frozen importlib"))
    return ours or filename.endswith(_IMPORT_MODULE)
