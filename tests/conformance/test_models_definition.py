"""Wrong declarations are refused when the class is made, with the fix in the text."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, String
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
    relationship,
)

from sqla_jobs import Arg, JobDefinitionError, JobMixin, Retention, arg, linear
from sqla_jobs.models import job_tables


class Base(DeclarativeBase):
    """The application's."""


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "definition_jobs"


class Invoice(Base):
    """A domain class."""

    __tablename__ = "definition_invoices"

    id: Mapped[int] = mapped_column(primary_key=True)


class Taken(Job, kind="taken", aliases=("was_taken",)):
    """Holds a kind, an alias and a column."""

    size: Mapped[int | None] = mapped_column()
    invoice_id: Mapped[int | None] = mapped_column(ForeignKey(Invoice.id))
    invoice: Mapped[Invoice | None] = relationship()


def _same_kind() -> None:
    class Second(Job, kind="taken"): ...


def _kind_is_alias() -> None:
    class Second(Job, kind="was_taken"): ...


def _alias_is_kind() -> None:
    class Second(Job, aliases="taken"): ...


def _own_kind_as_alias() -> None:
    class Second(Job, kind="second", aliases="second"): ...


def _reserved_arg() -> None:
    class Second(Job):
        payload: Arg[str]  # type: ignore[assignment]


def _reserved_column() -> None:
    class Second(Job):
        reason: Mapped[int] = mapped_column()  # type: ignore[assignment]


def _option_as_attribute() -> None:
    class Second(Job):
        queue = "mail"  # pyright: ignore[reportAssignmentType]


def _reserved_delay() -> None:
    class Second(Job):
        delay: Arg[int]


def _reserved_on_root() -> None:
    class Other(JobMixin, Base):
        __tablename__ = "definition_others"

        priority: Mapped[int] = mapped_column()


def _two_types() -> None:
    class Second(Job):
        size: Mapped[str | None]


def _two_sql_types() -> None:
    class Second(Job):
        size: Mapped[int | None] = mapped_column(String)


def _two_plain_types() -> None:
    class Second(Job):
        size = Column(String)


def _two_targets() -> None:
    class Second(Job):
        invoice_id: Mapped[int | None] = mapped_column(ForeignKey(Job.id))


def _unknown_keyword() -> None:
    class Second(Job, priorty=3): ...


def _later_keyword() -> None:
    class Second(Job, cron="* * * * *"): ...


def _no_table_name() -> None:
    class Other(JobMixin, Base): ...


def _root_with_kind() -> None:
    class Other(JobMixin, Base, kind="other"):
        __tablename__ = "definition_others"


def _unknown_load() -> None:
    class Second(Taken, load="invoce"): ...


def _bytes_arg() -> None:
    class Second(Job):
        body: Arg[bytes]


def _untyped_arg() -> None:
    class Second(Job):
        body = arg(default="")  # pyright: ignore[reportGeneralTypeIssues]


def _two_defaults() -> None:
    class Second(Job):
        body: Arg[str] = arg(default="", default_factory=str)  # type: ignore[call-overload]


def _generator() -> None:
    class Second(Job):
        def run(self, ctx: Any) -> Any:
            yield ctx


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (_same_kind, r"kind 'taken' would belong to two classes: .*Taken and .*Second"),
        (_kind_is_alias, r"kind 'was_taken' would belong to two classes"),
        (_alias_is_kind, r"kind 'taken' would belong to two classes"),
        (_own_kind_as_alias, r"kind 'second' would belong to two classes"),
        (_reserved_arg, r"Second\.payload would hide the attribute 'payload'"),
        (_reserved_column, r"Second\.reason would hide the attribute 'reason'"),
        (_option_as_attribute, r"for a default write class Second\(\.\.\., queue="),
        (_reserved_delay, r"Second\.delay would hide"),
        (_reserved_on_root, r"Other\.priority would hide"),
        (_two_types, r"Second\.size has another type .* that Taken declares"),
        (_two_sql_types, r"Second\.size has another type"),
        (_two_plain_types, r"Second\.size has another type"),
        (_two_targets, r"Second\.invoice_id has another type"),
        (_unknown_keyword, r"unknown class keyword 'priorty'; did you mean 'priority'"),
        (_later_keyword, r"unknown class keyword 'cron'"),
        (_no_table_name, r"Other has no __tablename__; .*__abstract__"),
        (_root_with_kind, r"Other makes a job table, so it has no kind"),
        (_unknown_load, r"unknown relationship in load 'invoce'.*'invoice'"),
        (_bytes_arg, r"Second\.body: bytes cannot be stored as JSON"),
        (_untyped_arg, r"Second\.body = arg\(\) has no type"),
        (_two_defaults, r"default= or default_factory="),
        (_generator, r"Second\.run is a generator"),
    ],
)
def test_wrong_declaration_is_refused(
    declare: Callable[[], None], message: str
) -> None:
    """Each mistake has its message, and maps nothing."""
    mapped = {mapper.class_ for mapper in Base.registry.mappers}
    kinds = dict(job_tables(Job).kinds)

    with pytest.raises(JobDefinitionError, match=message):
        declare()

    assert {mapper.class_ for mapper in Base.registry.mappers} == mapped
    assert job_tables(Job).kinds == kinds


def test_mixin_after_base_is_refused() -> None:
    """The Base maps a class before JobMixin sees it; the message shows the order."""

    class Other(DeclarativeBase): ...

    with pytest.raises(JobDefinitionError, match=r"class Late\(JobMixin, Base\)"):

        class Late(Other, JobMixin):
            __tablename__ = "definition_late"


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("kind", "", "must not be empty"),
        ("kind", 3, "must be a string"),
        ("aliases", ("",), "must not be empty"),
        ("aliases", 3, "must be a string"),
        ("queue", "", "must not be empty"),
        ("queue", "q" * 201, "201 bytes long; at most 200"),
        ("queue", "a\0", "NUL"),
        ("queue", "\ud800", "surrogate"),
        ("priority", 40_000, "from -32768 to 32767"),
        ("priority", True, "must be an integer"),
        ("max_attempts", 0, "1 or more"),
        ("max_attempts", -1, "1 or more"),
        ("timeout", timedelta(0), "above zero"),
        ("timeout", 5, "must be a timedelta"),
        ("lease", timedelta(seconds=2), "3 s or more"),
        ("backoff", 5, "must be a backoff"),
        ("retention", 5, "must be a Retention"),
        ("load", 5, "must name a relationship"),
    ],
)
def test_wrong_keyword_value_is_refused(keyword: str, value: Any, message: str) -> None:
    """The message of a bad class keyword names the class, the keyword and the rule."""
    with pytest.raises(JobDefinitionError, match=message) as caught:
        type("Bad", (Job,), {}, **{keyword: value})

    assert "Bad" in str(caught.value)


def test_options_merge_along_the_mro() -> None:
    """Abstract classes, mixins and parents are templates; kinds are not inherited."""

    class Reliable(JobMixin, max_attempts=50, queue="reliable"): ...

    class Mail(Job, queue="mail", backoff=linear()):
        __abstract__ = True

        to: Arg[str]

    class Send(Reliable, Mail, kind="mro_send", retention=timedelta(hours=1)): ...

    class SendFast(Send, priority=9): ...

    options = SendFast.__job_options__

    assert options.kind == "send_fast"
    assert (options.queue, options.max_attempts, options.priority) == (
        "reliable",
        50,
        9,
    )
    assert options.backoff == linear()
    assert options.retention == Retention(completed=timedelta(hours=1))
    assert SendFast(to="a").payload == {"to": "a"}


def test_keywords_of_other_bases_are_passed_on() -> None:
    """Class keywords that another base takes reach it."""

    class Colored:
        color = ""

        def __init_subclass__(cls, color: str = "", **keywords: Any) -> None:
            super().__init_subclass__(**keywords)
            cls.color = color

    class Painted(Colored, DeclarativeBase): ...

    class PaintJob(JobMixin, Painted, color="red"):
        __tablename__ = "definition_paint"

    class Paint(PaintJob, color="blue", queue="paint"): ...

    assert (PaintJob.color, Paint.color) == ("red", "blue")
    assert Paint().queue == "paint"


def test_load_accepts_names_and_attributes() -> None:
    """Relationships to load are stored by name."""

    class ByName(Taken, load="invoice"): ...

    class ByAttribute(Taken, load=[Taken.invoice]): ...

    assert ByName.__job_options__.load == ("invoice",)
    assert ByAttribute.__job_options__.load == ("invoice",)


def test_subclass_of_dataclass_base_keeps_its_keywords() -> None:
    """A dataclass base still takes its own class keywords."""

    class DataBase(MappedAsDataclass, DeclarativeBase): ...

    class DataJob(JobMixin, DataBase, kw_only=True):
        __tablename__ = "definition_data"

    class Send(DataJob, kw_only=True):
        size: Mapped[int | None] = mapped_column(default=None)

    assert Send(size=3).size == 3


def test_plain_column_can_be_shared() -> None:
    """A Column of the same type in two classes is one column."""

    class First(Job):
        weight = Column(Integer)

    class Second(Job):
        weight = Column(Integer)

    assert Second.__table__.c.weight is First.__table__.c.weight


def test_job_tables_of_something_else() -> None:
    """Asking a class that is no job for its tables says what to give."""
    with pytest.raises(JobDefinitionError, match="is not a job class"):
        job_tables(Invoice)
    with pytest.raises(JobDefinitionError, match="is not a job class"):
        job_tables(JobMixin)
