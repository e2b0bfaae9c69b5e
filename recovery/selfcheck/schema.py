"""Examination of the tables: what the migrations made is still there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django.apps import apps
from django.db import connection, models

from recovery.probing import missing_migrations
from recovery.selfcheck.findings import Finding, Severity, examination, some

Found = Mapping[str, Mapping[str, Any]]


class Wanted(NamedTuple):
    """An index or constraint that a model asks for."""

    kind: str
    """As the database's introspection calls it: index, unique, check."""
    name: str
    """Empty: the database's migrations chose one."""
    columns: list[str]
    """Empty: known by its name alone."""
    leading: bool = False
    """One that begins with these columns will do."""


@examination("migrations")
def migrations() -> Iterator[Finding]:
    """Look for migrations that were not applied."""
    missing = missing_migrations(connection)
    if missing:
        yield Finding(
            Severity.ERROR,
            "migrations-missing",
            f"Migrations are not applied: {some(missing)}.",
            "Run manage.py migrate.",
        )


@examination("tables")
def tables() -> Iterator[Finding]:
    """Look for tables, indexes and constraints that are gone."""
    with connection.cursor() as cursor:
        known = set(connection.introspection.table_names(cursor))
        for model in apps.get_models(include_auto_created=True):
            table = model._meta.db_table
            if not model._meta.managed or model._meta.proxy:
                continue
            if table not in known:
                yield _gone("table", table, table)
                continue
            found = connection.introspection.get_constraints(cursor, table)
            yield from _missing(model, found)


def _missing(model: type[models.Model], found: Found) -> Iterator[Finding]:
    for wanted in _wanted(model):
        if not _is_there(wanted, found):
            what = wanted.name or ", ".join(wanted.columns)
            yield _gone(wanted.kind, f"{model._meta.db_table}: {what}", model._meta.db_table)


def _gone(kind: str, what: str, table: str) -> Finding:
    effect = {
        "table": "what needs it fails",
        "index": "its queries go through, and lock, whole tables",
        "unique": "the same thing may be there twice",
        "check": "impossible rows may be stored",
    }[kind]
    names = {"unique": "unique constraint", "check": "check constraint"}
    return Finding(
        Severity.ERROR,
        f"{kind}-missing",
        f"The database has no {names.get(kind, kind)} {what}: {effect}.",
        f"Make it again as the migration of {table} does: manage.py sqlmigrate shows the"
        " statement.",
    )


def _wanted(model: type[models.Model]) -> Iterator[Wanted]:
    yield from _of_fields(model)
    for names in model._meta.unique_together:
        yield Wanted("unique", "", _columns(model, names))
    for index in model._meta.indexes:
        if not (index.condition and not connection.features.supports_partial_indexes):
            yield Wanted("index", index.name, _columns(model, index.fields))
    for constraint in model._meta.constraints:
        yield from _of_constraint(model, constraint)


def _of_fields(model: type[models.Model]) -> Iterator[Wanted]:
    for field in model._meta.local_concrete_fields:
        columns = [str(field.column)]
        if field.unique and not field.primary_key:
            yield Wanted("unique", "", columns)
        elif getattr(field, "db_index", False) and not field.primary_key:
            yield Wanted("index", "", columns, leading=True)


def _of_constraint(model: type[models.Model], it: models.BaseConstraint) -> Iterator[Wanted]:
    if isinstance(it, models.CheckConstraint):
        if connection.features.supports_table_check_constraints:
            yield Wanted("check", it.name, [])
    elif isinstance(it, models.UniqueConstraint) and not it.condition and not it.expressions:
        yield Wanted("unique", it.name, _columns(model, it.fields))


def _columns(model: type[models.Model], names: Sequence[str]) -> list[str]:
    return [_column(model, name.removeprefix("-")) for name in names]


def _column(model: type[models.Model], name: str) -> str:
    field = model._meta.get_field(name)
    return str(getattr(field, "column", name))


def _is_there(wanted: Wanted, found: Found) -> bool:
    if wanted.name in found:
        return bool(found[wanted.name][wanted.kind])
    return any(_serves(wanted, it) for it in found.values())


def _serves(wanted: Wanted, it: Mapping[str, Any]) -> bool:
    """Tell whether a constraint of another name does what is wanted."""
    columns = it["columns"] or []
    ordered = columns[: len(wanted.columns)] if wanted.leading else columns
    if not wanted.columns or ordered != wanted.columns:
        return False
    if wanted.kind == "unique":
        return bool(it["unique"] or it["primary_key"])
    return bool(it["index"] or it["unique"] or it["primary_key"])
