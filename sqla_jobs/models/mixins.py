"""`JobMixin`: makes a class of the application's own Base a job system."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import event

from sqla_jobs.models import define
from sqla_jobs.models.kinds import JobMapper


class JobMixin:
    """A job is a row of the first class made with this mixin, the root."""

    __mapper_cls__: ClassVar[type[Any]] = JobMapper
    __payload_limit__: ClassVar[int] = 1_000_000

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**define.prepare(cls, keywords))

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


event.listen(JobMixin, "after_mapper_constructed", define.finish, propagate=True)
