"""The mapped rows that handlers and plain loops write, the same for every system."""

from __future__ import annotations

from sqlalchemy import BigInteger, Identity
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The application's metadata."""


class Effect(Base):
    """What a handler writes."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job: Mapped[int] = mapped_column(BigInteger)


class Plain(Base):
    """A row with three columns, to compare an enqueue with."""

    __tablename__ = "plain_rows"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    kind: Mapped[str]
    payload: Mapped[str]
