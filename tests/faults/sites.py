"""Where the code writes rows, calls a verb that changes them, or writes an audit record.

Read from the source, so that what is added later is found without being run.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from django.conf import settings

APPS = ("ledger", "recovery", "splits")
WRITERS = {"bulk_create", "bulk_update", "get_or_create", "update_or_create", "save"}
"""Calls that write, whatever they are given."""
BARE_WRITERS = {"create", "update", "delete"}
"""Calls that write where nothing is given by position: ``dict.update(other)`` is none."""
STATEMENT = re.compile(r"(INSERT|UPDATE|REPLACE|DELETE)\s+(INTO|FROM|IGNORE|\{|[a-z])")


class Call(NamedTuple):
    """One call of a method, and by what it is called: ``on`` is the last name before the dot."""

    site: str
    on: str
    method: str


@cache
def modules() -> dict[str, ast.Module]:
    """Return the parsed modules of the product, migrations apart, by their dotted name."""
    base = Path(settings.BASE_DIR)
    return {
        ".".join(path.relative_to(base).with_suffix("").parts): ast.parse(path.read_text())
        for app in APPS
        for path in sorted((base / app).rglob("*.py"))
        if "migrations" not in path.parts
    }


def writing() -> set[str]:
    """Return the functions and methods that write rows themselves, by the ORM or by SQL."""
    found = set()
    for site, node in _nodes():
        if _writes(node) or STATEMENT.match(_text(node)):
            found.add(site)
    return found


def _writes(call: ast.AST) -> bool:
    """Tell whether this is a call that writes rows."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    name = call.func.attr
    bare = not call.args and (bool(call.keywords) or name == "delete")
    return name in WRITERS or (name in BARE_WRITERS and bare)


def _text(node: ast.AST) -> str:
    """Return how a string begins; what is formatted into it stands as a brace."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    return "".join(_text(it) if isinstance(it, ast.Constant) else "{" for it in parts)


def calls(methods: set[str]) -> set[Call]:
    """Return the calls of methods of these names, on whatever is no imported module."""
    found = set()
    for name, tree in modules().items():
        imported = set(_imported(tree))
        for site, node in _within(name, tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                on = _last_name(node.func.value)
                if node.func.attr in methods and on not in imported:
                    found.add(Call(site, on, node.func.attr))
    return found


def recording() -> set[str]:
    """Return the functions that write audit records themselves."""
    return {
        site
        for site, node in _nodes()
        if isinstance(node, ast.Attribute)
        and (_dotted(node) == "audit.record" or _dotted(node) == "AuditRecord.objects.create")
    }


def words(pattern: str) -> dict[str, set[str]]:
    """Return the text constants that are like ``pattern``, each with the modules that have it."""
    found = defaultdict(set)
    for name, tree in modules().items():
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(pattern, text):
                found[text].add(name)
    return dict(found)


def _nodes() -> Iterator[tuple[str, ast.AST]]:
    for name, tree in modules().items():
        yield from _within(name, tree)


def _within(site: str, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield each node below ``node`` with the function or class it is in; lambdas have no name."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
        inner = (
            f"{site}.{child.name}" if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else site
        )
        if not named:
            yield site, child
        yield from _within(inner, child)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (it.asname or it.name for it in node.names if it.name.islower())


def _last_name(node: ast.AST) -> str:
    """Return what stands before the dot: a name, an attribute, or what a call is a call of."""
    while isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
