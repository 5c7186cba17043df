"""SQLModel: its tables and ours in one metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, create_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    relationship,
    sessionmaker,
)

from sqla_jobs import Arg, Context, JobDefinitionError, JobMixin, Runner, arg
from tests.integration.frameworks.kit import require

require("sqlmodel")

from sqlmodel import Field, Session, SQLModel, select  # noqa: E402


class Invoice(SQLModel, table=True):
    """A table of the application's."""

    __tablename__ = "invoices"  # pyright: ignore[reportAssignmentType]

    id: int | None = Field(default=None, primary_key=True)
    title: str


class Note(SQLModel):
    """A model without a table."""

    text: str
    tags: list[str] = []


class Base(DeclarativeBase):
    """What the jobs are made of."""

    metadata = SQLModel.metadata


class Job(JobMixin, Base):
    """The job system."""

    __tablename__ = "model_jobs"


class SendInvoice(Job):
    """A job about a row of SQLModel's, with a model of it as its argument."""

    note: Arg[Note] = arg(default_factory=lambda: Note(text="Hi"))
    invoice_id: Mapped[int | None] = mapped_column(ForeignKey("invoices.id"))
    invoice: Mapped[Invoice | None] = relationship(Invoice)

    def run(self, ctx: Context) -> Note:
        """Write through the row, and through the session's `exec`."""
        assert self.invoice is not None
        session: Any = ctx.session
        found = session.exec(select(Invoice).where(Invoice.id == self.invoice_id)).one()
        assert found is self.invoice
        self.invoice.title += f" {self.note.text}"
        return self.note


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[Engine]:
    """Yield an engine on the tables of both."""
    engine = create_engine(url)
    SQLModel.metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_jobs_belong_to_tables_of_sqlmodel(engine: Engine) -> None:
    """Foreign keys, relationships and SQLModel's own session all work."""
    with Session(engine) as session:
        session.add(SendInvoice(invoice=Invoice(title="One")))
        session.add(SendInvoice(invoice=Invoice(title="Two"), note=Note(text="Ho")))
        session.commit()

    maker = sessionmaker(engine, class_=Session)
    Runner(maker, Job, listen=False).run_until_idle()

    with Session(engine) as session:
        titles = session.exec(select(Invoice.title).order_by(Invoice.title)).all()
        assert titles == ["One Hi", "Two Ho"]
        jobs = session.exec(select(SendInvoice).order_by(SendInvoice.id)).all()
        assert [job.state for job in jobs] == ["completed", "completed"]
        assert jobs[1].result == {"text": "Ho", "tags": []}


@pytest.mark.parametrize(
    ("bases", "keywords"),
    [
        ((JobMixin, SQLModel), {"table": True}),
        ((JobMixin, SQLModel), {}),
        ((SQLModel, JobMixin), {"table": True}),
    ],
)
def test_job_mixin_on_a_sqlmodel_class_is_refused(bases: Any, keywords: Any) -> None:
    """The error shows the base to write instead."""
    metaclass: Any = type(SQLModel)

    with pytest.raises(JobDefinitionError, match=r"metadata = SQLModel\.metadata"):
        metaclass("Wrong", bases, {"__module__": __name__}, **keywords)


def test_row_of_sqlmodel_is_no_argument() -> None:
    """A mapped object has a row of its own; a foreign key is what to keep."""
    with pytest.raises(JobDefinitionError, match="Invoice is a mapped class"):

        class Wrong(Job):
            invoice: Arg[Invoice]
