"""The engine's rows in Django's admin, to be read."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from recovery.models import AuditRecord, Job, JobRun

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
    _TabularInline = admin.TabularInline[Any, Any]
else:
    _ModelAdmin, _TabularInline = admin.ModelAdmin, admin.TabularInline


class ReadOnly:
    """Nothing is added, changed or deleted here: guarded verbs do that."""

    def has_add_permission(self, _request: HttpRequest, *_args: Any) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        """Refuse."""
        return False


class ReadOnlyAdmin(ReadOnly, _ModelAdmin):
    """Rows that are looked at, newest first."""

    ordering = ("-pk",)
    show_full_result_count = False


class ReadOnlyInline(ReadOnly, _TabularInline):
    """Rows of another row that are looked at."""

    extra = 0


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    """Jobs with their lease and last run."""

    ordering = ("name",)
    list_display = ("name", "last_status", "last_finished_at", "heartbeat_at", "paused_at", "fence")


@admin.register(JobRun)
class JobRunAdmin(ReadOnlyAdmin):
    """Runs, newest first."""

    list_display = ("started_at", "job", "status", "finished_at", "host", "pid", "counts")
    list_filter = ("status", "job")
    list_select_related = ("job",)


@admin.register(AuditRecord)
class AuditRecordAdmin(ReadOnlyAdmin):
    """Who changed what, when and why."""

    list_display = ("at", "actor", "action", "target_type", "target_id", "reason")
    search_fields = ("=target_id", "=actor", "=action")
