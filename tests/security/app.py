"""A small application whose values must never be seen."""

from __future__ import annotations

import enum
import os
from datetime import timedelta
from typing import Any

from sqlalchemy import CheckConstraint, Enum, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_jobs import Arg, Context, JobMixin, Retention, Runner, arg

CANARY = "hunter2-canary-7f3a"
"""What must not be seen; also a part of larger values."""


class Base(DeclarativeBase):
    """The application's own."""


class Mood(enum.Enum):
    """A column's type that refuses other texts itself."""

    GOOD = "good"


class Person(Base):
    """A row with constraints to break."""

    __tablename__ = "sec_people"
    __table_args__ = (CheckConstraint("age > 0", name="sec_people_age"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    age: Mapped[int]
    mood: Mapped[Mood | None] = mapped_column(
        Enum(Mood, native_enum=False, validate_strings=True)
    )


class Job(JobMixin, Base):
    """The job table."""

    __tablename__ = "sec_jobs"


class Pay(
    Job,
    kind="pay",
    max_attempts=1,
    retention=Retention(discarded=timedelta(0), archive=True),
):
    """A job with a secret argument, and one that is none."""

    token: Arg[str] = arg(default="", secret=True)
    card: Arg[str] = arg(default="")
    keys: Arg[dict[str, int] | None] = arg(default=None, secret=True)
    memo: Mapped[str | None] = mapped_column()


class Note(Job, kind="note"):
    """A job with a text; nobody here handles it."""

    text: Arg[str] = arg(default="")


class Login(Job, kind="login"):
    """A job whose secret has no default."""

    password: Arg[str] = arg(secret=True)

    def run(self, ctx: Context) -> None:
        """Do nothing."""


def person(**values: Any) -> Person:
    """Return a person with the canary as the address."""
    return Person(**{"email": CANARY, "age": 1, **values})


def make_runner() -> Runner:
    """Return the runner that the command line names."""
    return Runner(sessionmaker(create_engine(os.environ["APP_DSN"])), Job)
