"""What only some may see; the others are told which permission it takes."""

from collections.abc import Callable, Mapping
from typing import Any

from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from recovery.admin.tables import long_text

STACK_TRACES = "recovery.view_stacktrace"

_permissions: dict[str, str] = {}


def conceal(*keys: str, permission: str) -> None:
    """Let what JSON holds under ``keys`` be seen with ``permission`` only; see ``masked``."""
    _permissions.update(dict.fromkeys(keys, permission))


def may_see(reader: Any, permission: str) -> bool:
    """Tell whether a user, such as ``request.user``, may see what takes the permission."""
    return bool(reader.has_perm(permission))


def refusal(permission: str) -> str:
    """Return what stands in the place of what a reader may not see."""
    text = _("You need the permission %(permission)s to see this.")
    return text % {"permission": permission}


def withheld(permission: str) -> SafeString:
    """Return the refusal for a page."""
    return format_html('<span class="withheld">{}</span>', refusal(permission))


def masked(content: Any, reader: Any) -> Any:
    """Return JSON as ``reader`` may see it: under concealed keys, at any depth, the refusal."""
    return _replaced(content, reader, refusal)


def bared(content: Any, reader: Any) -> Any:
    """Return of JSON what ``reader`` may see, to search it: under concealed keys is nothing."""
    return _replaced(content, reader, lambda _permission: None)


def _replaced(content: Any, reader: Any, instead: Callable[[str], Any]) -> Any:
    if isinstance(content, list):
        return [_replaced(it, reader, instead) for it in content]
    if not isinstance(content, Mapping):
        return content
    found = {}
    for key, value in content.items():
        permission = _permissions.get(key)
        if permission and not may_see(reader, permission):
            found[key] = instead(permission)
        else:
            found[key] = _replaced(value, reader, instead)
    return found


def error_for(reader: Any, text: str) -> SafeString | str:
    """Return an error for a page; of a stack trace, without the permission, only its last line."""
    lines = text.strip().splitlines()
    if len(lines) < 2 or may_see(reader, STACK_TRACES):
        return long_text(text)
    return format_html("{}{}", long_text(lines[-1].strip()), withheld(STACK_TRACES))


def first_line(text: str) -> str:
    """Return the beginning of an error for a list: of a stack trace, that it is one."""
    return text.strip().partition("\n")[0]
