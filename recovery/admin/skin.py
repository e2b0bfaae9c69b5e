"""The class of the skin that our admins derive from, with the type of what it replaces."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    SkinnedAdmin = ModelAdmin[Any]
else:
    from unfold.admin import ModelAdmin as SkinnedAdmin

__all__ = ["SkinnedAdmin"]
