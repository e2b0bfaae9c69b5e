"""The admin shows rows and changes none."""

import pytest
from django.contrib import admin
from django.urls import reverse

from ledger.models import Account, OutboxEntry, Transaction
from recovery.models import AuditRecord, Job, JobRun
from splits.models import Breaker, Lot, SplitOrder
from tests.factories import SplitOrderFactory, hang

pytestmark = pytest.mark.django_db

MODELS = [Account, OutboxEntry, Transaction, AuditRecord, Job, JobRun, Breaker, Lot, SplitOrder]


def name_of(model, page: str) -> str:
    return f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_list_can_be_read_and_searched(admin_client, model):
    Breaker.objects.create(endpoint="http://erp.example:80")
    hang(SplitOrderFactory())
    url = reverse(name_of(model, "changelist"))
    assert admin_client.get(url).status_code == 200
    assert admin_client.get(url, {"q": "x"}).status_code == 200


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_nothing_can_be_added_changed_or_deleted(rf, admin_user, model):
    request = rf.get("/")
    request.user = admin_user
    model_admin = admin.site.get_model_admin(model)
    assert model_admin.has_view_permission(request)
    assert not model_admin.has_add_permission(request)
    assert not model_admin.has_change_permission(request)
    assert not model_admin.has_delete_permission(request)


def test_order_shows_its_lines_and_steps(admin_client):
    order = SplitOrderFactory(at="finalized")
    page = admin_client.get(reverse(name_of(SplitOrder, "change"), args=[order.pk]))
    assert b"OAK-OFF" in page.content
    assert b"create outputs" in page.content


def test_order_cannot_be_saved_by_post(admin_client):
    order = SplitOrderFactory()
    url = reverse(name_of(SplitOrder, "change"), args=[order.pk])
    assert admin_client.post(url, {"status": "finalized"}).status_code == 403
