"""An application's models as they were from version to version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_jobs import Arg, JobMixin, arg

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def shop(version: int, **options: Any) -> Any:
    """
    Return the declarative base of a version, which has all that earlier ones have.

    1 has orders and jobs; 2 adds a job class with an Arg; 3 one with a foreign key;
    4 one with a table of its own; 5 another job table. *options* are the metadata's.
    """

    class Base(DeclarativeBase):
        metadata = MetaData(**options)
        models: ClassVar[list[Any]] = []  # a registry alone does not keep them alive

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Job(JobMixin, Base):
        __tablename__ = "jobs"

    # Without a convention a foreign key needs a name, or it cannot be dropped again.
    key_name = None if "naming_convention" in options else "jobs_order_id_fkey"
    changes = _changes(Base, Order, Job, key_name)
    Base.models += [Order, Job, *(add() for add in [*changes][: version - 1])]
    return Base


def model(base: Any, name: str) -> Any:
    """Return the model of that name."""
    return next(one for one in base.models if one.__name__ == name)


def _changes(base: Any, order: Any, job: Any, key_name: str | None) -> Iterator[Any]:
    def an_argument() -> Any:
        class Mail(job):  # type: ignore[misc]
            subject: Arg[str] = arg(default="")

        return Mail

    def a_foreign_key() -> Any:
        class Invoice(job):  # type: ignore[misc]
            order_id: Mapped[int] = mapped_column(
                ForeignKey(order.id, name=key_name, ondelete="CASCADE"), index=True
            )

        return Invoice

    def a_table() -> Any:
        class Import(job):  # type: ignore[misc]
            __tablename__ = "imports"
            path: Mapped[str]

        return Import

    def a_root() -> Any:
        class Night(JobMixin, base):  # type: ignore[misc]
            __tablename__ = "night_jobs"

        return Night

    yield from (an_argument, a_foreign_key, a_table, a_root)
