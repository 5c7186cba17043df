"""What differs between the job tables in the code and those in the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Index, Table, UniqueConstraint
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression

from sqla_jobs._dialects import JobDialect
from sqla_jobs._dialects.base import FoundIndex, FoundTable
from sqla_jobs.errors import Difference
from sqla_jobs.models import JobTables
from sqla_jobs.models.columns import COLUMN_NAMES, is_own_index, storage_changes

NO_TABLE = "the table is missing"
Keys = tuple[tuple[str, bool], ...]


def find_differences(
    connection: Connection, roots: Sequence[JobTables], dialect: JobDialect
) -> tuple[Difference, ...]:
    """Return what differs in the tables of *roots*, blocking ones first."""
    tables = {table: root for root in roots for table in root.all_tables()}
    names = {table: name_of(table, connection) for table in tables}
    found = dialect.read_tables(connection, names.values())
    sides = [
        Side(
            table,
            root,
            connection.dialect,
            found.get(names[table]),
            schema_of(table, connection),
        )
        for table, root in tables.items()
    ]
    pairs = [pair for side in sides for pair in side.type_pairs().values()]
    unlike = dialect.other_types(connection, pairs)
    compared = (one for side in sides for one in side.differences(dialect, unlike))
    return tuple(sorted(compared, key=lambda one: not one.blocking))


def name_of(table: Table, connection: Connection) -> str:
    """Return the quoted name that statements on *connection* use for *table*."""
    quoting = connection.dialect.identifier_preparer
    schema = schema_of(table, connection)
    prefix = f"{quoting.quote_schema(schema)}." if schema else ""
    return prefix + quoting.quote(table.name)


def schema_of(table: Table, connection: Connection) -> str | None:
    """Return the schema of *table* for statements on *connection*; None as default."""
    schemas = connection.get_execution_options().get("schema_translate_map") or {}
    schema: str | None = schemas.get(table.schema, table.schema)
    return schema


@dataclass(frozen=True)
class Side:
    """One table in the code, and what the database has of it; None if nothing."""

    table: Table
    root: JobTables
    sql: Dialect
    found: FoundTable | None
    schema: str | None

    def type_pairs(self) -> dict[str, tuple[str, str]]:
        """Return each common column's type, in the code and in the database."""
        columns = self.found.columns if self.found else {}
        return {
            column.name: (ddl, columns[column.name].type)
            for column in self.table.c
            if column.name in columns and (ddl := type_of(column, self.sql))
        }

    def differences(
        self, dialect: JobDialect, unlike: set[tuple[str, str]]
    ) -> Iterator[Difference]:
        """Yield what differs; *unlike* are the pairs of types that do."""
        if self.found is None:
            yield self._behind(NO_TABLE, blocking=True)
            return
        yield from self._columns(self.found, unlike)
        yield from self._indexes(self.found, dialect)
        yield from self._foreign_keys(self.found)
        yield from self._storage(self.found)

    def _behind(self, text: str, *, blocking: bool = False) -> Difference:
        return Difference(self._name, text, blocking)

    def _ahead(self, text: str) -> Difference:
        return Difference(self._name, text, blocking=False, ahead=True)

    @property
    def _name(self) -> str:
        return f"{self.schema}.{self.table.name}" if self.schema else self.table.name

    def _columns(
        self, found: FoundTable, unlike: set[tuple[str, str]]
    ) -> Iterator[Difference]:
        types = self.type_pairs()
        for column in self.table.c:
            name, own = column.name, self._is_own(column)
            has = found.columns.get(name)
            if has is None:
                yield self._behind(f"column {name} is missing", blocking=True)
                continue
            if types.get(name) in unlike:
                code, kind = types[name]
                yield self._behind(
                    f"column {name} is {code} in the code, {kind} in the database",
                    blocking=own,
                )
            if column.nullable != has.nullable:
                words = ("NOT NULL", "nullable")
                yield self._behind(
                    f"column {name} is {words[bool(column.nullable)]} in the code,"
                    f" {words[has.nullable]} in the database",
                    blocking=own and not has.nullable,
                )
        known = {column.name for column in self.table.c}
        for name in (name for name in found.columns if name not in known):
            yield self._ahead(f"the code has no column {name}")

    def _is_own(self, column: Column[object]) -> bool:
        """Return whether the library itself reads and writes *column*."""
        if self.table is self.root.table:
            return column.name in COLUMN_NAMES
        support = (self.root.attempts, self.root.queues, self.root.runners)
        return self.table in support

    def _indexes(self, found: FoundTable, dialect: JobDialect) -> Iterator[Difference]:
        rest = dict(found.indexes)
        for index in sorted(self.table.indexes, key=lambda index: str(index.name)):
            own, name = is_own_index(index), self._index_name(index, rest)
            has = rest.pop(name, None)
            if has is None:
                yield self._behind(f"index {name} is missing", blocking=own)
                continue
            for text in index_texts(index, has, dialect):
                yield self._behind(f"index {name} {text}")
        for constraint in self.table.constraints:
            if not isinstance(constraint, UniqueConstraint):
                continue
            names = [column.name for column in constraint.columns]
            match = [name for name, one in rest.items() if is_unique_on(one, names)]
            if match:
                del rest[match[0]]
            else:
                listed = ", ".join(names)
                yield self._behind(f"the unique constraint on {listed} is missing")
        for name in rest:
            yield self._ahead(f"the code has no index {name}")

    def _index_name(self, index: Index, found: Mapping[str, FoundIndex]) -> str:
        """Return the name of *index*; under some conventions the database gave it."""
        if index.name is not None:
            return index_name(index, self.sql)
        keys = keys_of(index)
        alike = [name for name, one in found.items() if one.keys == keys]
        return alike[0] if alike else f"on {keys_text(keys or ())}"

    def _foreign_keys(self, found: FoundTable) -> Iterator[Difference]:
        code = {
            ",".join(sorted(element.parent.name for element in key.elements))
            for key in self.table.foreign_key_constraints
        }
        for columns in sorted(code - found.foreign_keys):
            yield self._behind(f"the foreign key on {columns} is missing")
        for columns in sorted(found.foreign_keys - code):
            yield self._ahead(f"the code has no foreign key on {columns}")

    def _storage(self, found: FoundTable) -> Iterator[Difference]:
        for name, (code, has) in storage_changes(self.table, found.storage).items():
            yield self._behind(
                f"storage parameter {name} is {code} in the code,"
                f" {has or 'not set'} in the database"
            )


def type_of(column: Column[object], sql: Dialect) -> str | None:
    """Return the column's type as DDL; None if it has none yet."""
    try:
        return column.type.compile(dialect=sql)
    except CompileError:  # that of a foreign key whose target is not known
        return None


def index_name(index: Index, sql: Dialect) -> str:
    """Return the index's name in the database: by its convention, and not too long."""
    name = sql.identifier_preparer.format_index(index)
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def index_texts(index: Index, has: FoundIndex, dialect: JobDialect) -> Iterator[str]:
    """Yield how the index in the database differs from *index*."""
    if not has.valid:
        yield "is not valid in the database: REINDEX it"
    if bool(index.unique) != has.unique:
        words = ("not unique", "unique")
        code, found = words[bool(index.unique)], words[has.unique]
        yield f"is {code} in the code, {found} in the database"
    keys = keys_of(index)
    if keys is not None and keys != has.keys:
        code, found = keys_text(keys), keys_text(has.keys)
        yield f"is on ({code}) in the code, ({found}) in the database"
    if other_where(index, has.predicate or "", dialect):
        code, found = where_text(where_of(index)), where_text(has.predicate)
        yield f"is {code} in the code, {found} in the database"


def keys_of(index: Index) -> Keys | None:
    """Return the index's columns, and which descend; None if one is an expression."""
    keys = []
    for one in index.expressions:
        descending, column = False, one
        while isinstance(column, UnaryExpression) and column.modifier:
            descending = descending or column.modifier is operators.desc_op
            column = column.element
        if not isinstance(column, Column):
            return None
        keys.append((column.name, descending))
    return tuple(keys)


def keys_text(keys: Keys) -> str:
    """Return *keys* as in an index's DDL."""
    return ", ".join(f"{name} DESC" if desc else name for name, desc in keys)


def where_of(index: Index) -> str:
    """Return the predicate of *index*; "" without one."""
    where = index.dialect_options["postgresql"]["where"]
    return "" if where is None else str(where)


def other_where(index: Index, found: str, dialect: JobDialect) -> bool:
    """
    Return whether *index* has another predicate than *found*, "" for none.

    The words of the application's own cannot be compared: the database prints them in
    its own way.
    """
    code = where_of(index)
    if bool(code) != bool(found):
        return True
    return is_own_index(index) and not dialect.same_predicate(code, found)


def where_text(predicate: str | None) -> str:
    """Return *predicate* in words."""
    return f"WHERE {predicate}" if predicate else "for all rows"


def is_unique_on(index: FoundIndex, columns: Sequence[str]) -> bool:
    """Return whether *index* allows a value of *columns* only once."""
    names = {name for name, _ in index.keys}
    return index.unique and index.predicate is None and names == set(columns)
