"""Make mapped instances of claimed rows, at a fraction of the price of a query."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Column
from sqlalchemy.orm import Mapper, make_transient_to_detached
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.models import JobTables


class _Recipe(NamedTuple):
    """
    How the instances of one class are made of rows of the hot table.

    Args:
        values: Takes the values of `keys` out of a row; None if they are the row.
        whole: Whether the row has all there is; a joined class has another table.
    """

    make: Callable[[], Any]
    keys: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]] | None
    root: type[Any]
    whole: bool


def are_plain(tables: JobTables) -> bool:
    """
    Return whether `instances` can stand in for the ORM.

    It cannot where something waits for loads (events, composites, mutable values), or
    an attribute is no plain column.
    """
    return all(_is_plain(tables, cls) for cls in set(tables.kinds.values()))


def instances(tables: JobTables, rows: Iterable[Any]) -> list[Any]:
    """
    Return an instance of its class for each row, detached, as if loaded and closed.

    Args:
        rows: All columns of the hot table, in its order.
    """
    kind = list(tables.table.c.keys()).index("kind")
    recipes: dict[str, _Recipe] = {}
    made = []
    for row in rows:
        recipe = recipes.get(row[kind])
        if recipe is None:
            recipe = recipes[row[kind]] = _recipe_of(tables, tables.kinds[row[kind]])
        make, keys, values, root, whole = recipe
        job = make()
        held = job.__dict__
        held.update(zip(keys, row if values is None else values(row), strict=True))
        if whole:
            instance_state(job).key = (root, (held["id"],), None)
        else:
            make_transient_to_detached(job)
        made.append(job)
    return made


def _is_plain(tables: JobTables, cls: type[Any]) -> bool:
    mapper: Mapper[Any] = cls.__mapper__
    if mapper.class_manager.dispatch.load:
        return False
    known: bool | None = cls.__dict__.get("__job_is_plain__")
    if known is None:
        known = cls.__job_is_plain__ = all(
            not attr.deferred and all(isinstance(one, Column) for one in attr.columns)
            for attr in mapper.column_attrs
        )
    return known


def _recipe_of(tables: JobTables, cls: type[Any]) -> _Recipe:
    known: _Recipe | None = cls.__dict__.get("__job_recipe__")
    if known is not None:
        return known
    mapper: Mapper[Any] = cls.__mapper__
    names = list(tables.table.c.keys())
    places: dict[str, int] = {}
    for attr in mapper.column_attrs:
        own = [one for one in attr.columns if one.table is tables.table]
        if own:
            places[attr.key] = names.index(own[0].key)
    in_order = list(places.values()) == list(range(len(names)))
    recipe = cls.__job_recipe__ = _Recipe(
        mapper.class_manager.new_instance,
        tuple(places),
        None if in_order else itemgetter(*places.values()),
        mapper.base_mapper.class_,
        whole=len(places) == len(list(mapper.column_attrs)),
    )
    return recipe
