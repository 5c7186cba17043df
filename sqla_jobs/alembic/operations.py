"""The operation that changes storage parameters; rendered without this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import ExecuteSQLOp
from sqlalchemy import DDL, MetaData, Table


class StorageOp(ExecuteSQLOp):
    """ALTER TABLE with *actions* on storage parameters, and how to take them *back*."""

    def __init__(
        self, name: str, schema: str | None, *, actions: str, back: str
    ) -> None:
        self.name, self.schema = name, schema
        self.actions, self.back = actions, back
        # Not a string: so the name is quoted, and its schema translated.
        self.ddl = f"ALTER TABLE %(fullname)s {actions}"
        table = Table(name, MetaData(), schema=schema)
        ddl: Any = DDL(self.ddl)  # type: ignore[no-untyped-call]
        super().__init__(ddl.against(table))

    @classmethod
    def of(cls, table: Table, changed: Mapping[str, tuple[str, str | None]]) -> Self:
        """Return what sets the *changed* parameters, given new and old values."""
        new = {name: value for name, (value, _) in changed.items()}
        old = {name: value for name, (_, value) in changed.items() if value is not None}
        reset = ", ".join(name for name in new if name not in old)
        back = [_set(old)] if old else []
        back += [f"RESET ({reset})"] if reset else []
        return cls(table.name, table.schema, actions=_set(new), back=", ".join(back))

    def reverse(self) -> StorageOp:
        """Return what takes it back."""
        return type(self)(self.name, self.schema, actions=self.back, back=self.actions)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as `compare_metadata` lists differences."""
        return ("change_storage", self.schema, self.name, self.actions)


def _set(values: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} = {value}" for name, value in values.items())
    return f"SET ({listed})"


@renderers.dispatch_for(StorageOp)
def _render(context: AutogenContext, op: StorageOp) -> str:
    alembic = context.opts["alembic_module_prefix"] or ""
    sa = context.opts["sqlalchemy_module_prefix"] or ""
    schema = f", schema={op.schema!r}" if op.schema else ""
    table = f"{sa}Table({str(op.name)!r}, {sa}MetaData(){schema})"
    return (
        f"{alembic}execute(\n"
        f"    {sa}DDL(\n"
        f"        {op.ddl!r}\n"
        f"    ).against({table})\n"
        ")"
    )
