"""The page that guides through the demo: live figures, the stories, where to look, what to try."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.admin.utils import quote
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from ledger.models import Account
from ledger.outbox import JOB
from recovery.clock import db_now
from splits.demo import figures, scenes, tales
from splits.demo.deliveries import EVERY_S
from splits.demo.scenes import CLOSED_SKU, State
from splits.demo.stories import STORIES
from splits.demo.tales import Line, Link
from splits.notify import origin

REFRESH_S = 3


@dataclass(frozen=True)
class Told:
    """A story as the page shows it."""

    title: str
    why: str
    state: State
    state_text: str
    lines: list[Line]


@require_safe
@never_cache
def guide(request: HttpRequest) -> HttpResponse:
    """Show the whole page."""
    live = _live()
    return render(request, "splits/demo.html", live | _fixed(live["account"]))


@require_safe
@never_cache
def live(request: HttpRequest) -> HttpResponse:
    """Show the part of the page that changes, for the page to fetch."""
    return render(request, "splits/demo_live.html", _live())


def _fixed(account: Account | None) -> dict[str, Any]:
    accounts = reverse("admin:ledger_account_changelist")
    return {
        "refresh_s": REFRESH_S,
        "every_s": round(EVERY_S),
        "sku": CLOSED_SKU,
        "admin": reverse("admin:index"),
        "account_url": Link("", account).url if account else accounts,
        "outbox_job": reverse("admin:recovery_job_change", args=(quote(JOB),)),
    }


def _live() -> dict[str, Any]:
    now = db_now()
    seen = scenes.read(origin(urlsplit(settings.SPLIT_COMPLETION_WEBHOOK)))
    return {
        "now": now,
        "figures": figures.read(now),
        "account": seen.closed.account,
        "stories": [
            _told(0, seen.closed.state, tales.of_closed_account(seen.closed), now=now),
            _told(1, seen.deaf.state, tales.of_deaf_endpoint(seen.deaf), now=now),
            _told(2, seen.killed.state, tales.of_killed_finalizer(seen.killed, now), now=now),
        ],
    }


def _told(nth: int, state: State, lines: Iterable[Line], *, now: datetime) -> Told:
    whys = (
        _(
            "What the ledger refuses for good must not be retried for ever, nor block others. It"
            " ends in the dead letter queue (DLQ), with its reason."
        ),
        _(
            "Somebody else's system is down. Orders are retried, ever more slowly; after a few"
            " failures in a row a breaker stops trying, so that waiting costs no attempts."
        ),
        _(
            "A worker dies in the middle. Nobody hears of it, so somebody must look: find it,"
            " prove that it is dead, reset it on the record, and go on without posting twice."
        ),
    )
    words = {
        State.WAITING: _("not played yet"),
        State.UNDER_WAY: _("happening now"),
        State.PLAYED: _("played"),
        State.OTHERWISE: _("went otherwise"),
    }
    # What has no time is how it stands now.
    in_turn = sorted(lines, key=lambda line: (line.at is None, line.at or now))
    return Told(str(STORIES[nth].title), whys[nth], state, words[state], in_turn)
