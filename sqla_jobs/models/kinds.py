"""Which class a row loads as: its kind, an alias of it, or else the root."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Mapper
from sqlalchemy.util import HasMemoized

from sqla_jobs.errors import JobDefinitionError


class KindMap(dict[Any, Mapper[Any]]):
    """Kinds and aliases with their mappers; an unmapped kind is the root's."""

    def __init__(self, root: Mapper[Any]) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, kind: Any) -> Mapper[Any]:
        return self.root


class _AnyKind(frozenset[Any]):
    def __contains__(self, kind: object) -> bool:
        return True


class JobMapper(Mapper[Any]):
    """
    A mapper that knows the aliases of kinds.

    SQLAlchemy has no public way to give a class two identities, so this overrides three
    private attributes of its mapper; tests/conformance pins them on each version.
    """

    def __init__(self, class_: type[Any], *args: Any, **kw: Any) -> None:
        if "__job_options__" not in vars(class_):
            raise JobDefinitionError(
                f"{class_.__name__} was mapped before JobMixin could add its columns;"
                f" name JobMixin first: class {class_.__name__}(JobMixin, Base)"
            )
        if not hasattr(class_, "lease_token"):
            raise JobDefinitionError(
                f"JobMixin needs a declarative base; instead of a decorator write"
                f" class {class_.__name__}(JobMixin, Base)"
            )
        super().__init__(class_, *args, **kw)

    @HasMemoized.memoized_attribute
    def _single_table_criteria_component(self) -> Any:
        if not (self.single and self.inherits and self.polymorphic_on is not None):
            return None
        entity = {"parententity": self, "parentmapper": self}
        return self.polymorphic_on._annotate(entity), tuple(kinds_below(self))

    @HasMemoized.memoized_attribute
    def _single_table_criterion(self) -> Any:
        found = self._single_table_criteria_component
        return None if found is None else found[0].in_(found[1])

    @HasMemoized.memoized_attribute
    def _acceptable_polymorphic_identities(self) -> Any:
        # What a row of this class may hold at flush without a warning.
        return _AnyKind() if self.inherits is None else frozenset(kinds_below(self))


def kinds_below(mapper: Mapper[Any]) -> list[str]:
    """Return the kinds and aliases of a mapper's class and its subclasses."""
    kinds: list[str] = []
    for each in mapper.self_and_descendants:
        if each.polymorphic_identity is not None:
            kinds += (each.polymorphic_identity, *each.class_.__job_options__.aliases)
    return kinds
