"""What PostgreSQL's catalogue says about tables: three reads, whatever their number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ARRAY, Connection, Row, Text, bindparam, text

from sqla_jobs._dialects.base import FoundColumn, FoundIndex, FoundTable

# to_regclass() finds what a statement with that name would: by the search path.
ASKED = "unnest(CAST(:names AS text[])) AS asked (name)"
TABLES = f"""
SELECT asked.name, cls.reloptions,
  ARRAY(
    SELECT (
      SELECT string_agg(att.attname, ',' ORDER BY att.attname COLLATE "C")
      FROM pg_catalog.pg_attribute att
      WHERE att.attrelid = con.conrelid AND att.attnum = ANY (con.conkey)
    )
    FROM pg_catalog.pg_constraint con
    WHERE con.conrelid = cls.oid AND con.contype = 'f'
  ) AS foreign_keys
FROM {ASKED} JOIN pg_catalog.pg_class cls ON cls.oid = to_regclass(asked.name)
"""  # noqa: S608 - constants only
COLUMNS = f"""
SELECT asked.name, CAST(att.attname AS text) AS column,
  pg_catalog.format_type(att.atttypid, att.atttypmod) AS type,
  NOT att.attnotnull AS nullable
FROM {ASKED} JOIN pg_catalog.pg_attribute att ON att.attrelid = to_regclass(asked.name)
WHERE att.attnum > 0 AND NOT att.attisdropped ORDER BY att.attnum
"""  # noqa: S608
INDEXES = f"""
SELECT asked.name, CAST(cls.relname AS text) AS index_name, ind.indisunique AS unique,
  ind.indisvalid AS valid, CAST(ind.indoption AS text) AS options,
  pg_catalog.pg_get_expr(ind.indpred, ind.indrelid) AS predicate,
  ARRAY(
    SELECT pg_catalog.pg_get_indexdef(ind.indexrelid, CAST(num AS integer), true)
    FROM generate_series(1, ind.indnkeyatts) AS num ORDER BY num
  ) AS keys
FROM {ASKED} JOIN pg_catalog.pg_index ind ON ind.indrelid = to_regclass(asked.name)
JOIN pg_catalog.pg_class cls ON cls.oid = ind.indexrelid
WHERE NOT ind.indisprimary AND NOT ind.indisexclusion ORDER BY cls.relname
"""  # noqa: S608
SAME_TYPES = """
SELECT to_regtype(asked.code) IS NULL
  OR to_regtype(asked.code) = to_regtype(asked.found)
FROM unnest(CAST(:codes AS text[]), CAST(:founds AS text[]))
  WITH ORDINALITY AS asked (code, found, place) ORDER BY asked.place
"""

# What to_regtype() can read; it raises for anything else.
TYPE_NAME = re.compile(
    r'[\w ."]+(\([\w, ]*\))?( with(out)? time zone)?(\[\])*', re.IGNORECASE
)
SYNONYMS = {
    "varchar": "character varying",
    "float": "double precision",
    "decimal": "numeric",
}
CAST_TO = re.compile(r"::(?:character varying|\w+)(?:\[\])?")


def read_tables(connection: Connection, names: Iterable[str]) -> dict[str, FoundTable]:
    """Return what the database has, by the quoted names; not those that it lacks."""
    asked = {"names": list(names)}
    found = {
        row.name: FoundTable(
            storage=dict(option.split("=", 1) for option in row.reloptions or ()),
            foreign_keys=frozenset(row.foreign_keys),
        )
        for row in _read(connection, TABLES, asked)
    }
    for row in _read(connection, COLUMNS, asked):
        if row.name in found:  # else it was made a moment ago
            found[row.name].columns[row.column] = FoundColumn(row.type, row.nullable)
    for row in _read(connection, INDEXES, asked):
        if row.name not in found:
            continue
        descending = [bool(int(option) & 1) for option in row.options.split()]
        found[row.name].indexes[row.index_name] = FoundIndex(
            tuple(zip(map(_unquoted, row.keys), descending, strict=False)),
            unique=row.unique,
            valid=row.valid,
            predicate=row.predicate,
        )
    return found


def other_types(
    connection: Connection, pairs: Sequence[tuple[str, str]]
) -> set[tuple[str, str]]:
    """
    Return the *pairs* of DDL and found type that are not the same type.

    A type that the database cannot find is not reported: it may be in a schema that
    is not on the search path.
    """
    unlike = [pair for pair in pairs if _plain(pair[0]) != _plain(pair[1])]
    askable = [pair for pair in unlike if TYPE_NAME.fullmatch(_uncollated(pair[0]))]
    if not askable:
        return set()
    params = {
        "codes": [_uncollated(code) for code, _ in askable],
        "founds": [found for _, found in askable],
    }
    answers = [row[0] for row in _read(connection, SAME_TYPES, params)]
    return {
        pair
        for pair, same in zip(askable, answers, strict=True)
        if not same or _other_length(*pair)
    }


def plain_predicate(predicate: str) -> str:
    """Return a predicate without what PostgreSQL adds when it prints one."""
    plain = CAST_TO.sub("", predicate)
    plain = re.sub(r"= ANY \(+ARRAY\[(.*?)\]\)+", r"IN (\1)", plain)
    plain = re.sub(r"<> ALL \(+ARRAY\[(.*?)\]\)+", r"NOT IN (\1)", plain)
    return re.sub(r"[()\s]", "", plain).lower()


def _read(
    connection: Connection, statement: str, params: dict[str, list[str]]
) -> Sequence[Row[Any]]:
    typed = [bindparam(name, type_=ARRAY(Text())) for name in params]
    return connection.execute(text(statement).bindparams(*typed), params).all()


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _uncollated(ddl: str) -> str:
    return re.sub(r"\s+COLLATE\s.*", "", ddl, flags=re.IGNORECASE)


def _plain(ddl: str) -> str:
    """Return a type's name as format_type() says it, without its schema."""
    name = _uncollated(ddl).lower().replace('"', "")
    word, paren, rest = name.partition("(")
    word = word.rpartition(".")[2]
    return SYNONYMS.get(word, word) + paren + rest.replace(" ", "")


def _other_length(code: str, found: str) -> bool:
    """Return whether ``varchar(10)`` became ``varchar(20)``."""
    asked, has = (re.search(r"\((\d+)", ddl) for ddl in (code, found))
    if asked is None:
        return has is not None and has[1] != "1"  # char is char(1)
    return has is not None and asked[1] != has[1]
