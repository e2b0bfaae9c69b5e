"""What only some may see; the others are told which permission it takes."""

from collections.abc import Mapping
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
    if isinstance(content, list):
        return [masked(it, reader) for it in content]
    if isinstance(content, Mapping):
        return {key: _masked(key, value, reader) for key, value in content.items()}
    return content


def _masked(key: str, value: Any, reader: Any) -> Any:
    permission = _permissions.get(key)
    if permission and not may_see(reader, permission):
        return refusal(permission)
    return masked(value, reader)


def error_for(reader: Any, text: str) -> SafeString | str:
    """Return an error for a page; of a stack trace, without the permission, only its last line."""
    lines = text.strip().splitlines()
    if len(lines) < 2 or may_see(reader, STACK_TRACES):
        return long_text(text)
    return format_html("{}{}", long_text(lines[-1].strip()), withheld(STACK_TRACES))


def first_line(text: str) -> str:
    """Return the beginning of an error for a list: of a stack trace, that it is one."""
    return text.strip().partition("\n")[0]
