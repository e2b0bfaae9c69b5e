"""Between tests tables are emptied, and what Django makes of its models is as after a migration."""

import pytest
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command

from splits.models import Lot
from tests.factories import LotFactory

pytestmark = pytest.mark.django_db(transaction=True)


def flush():
    call_command("flush", verbosity=0, interactive=False)


def permissions():
    return set(Permission.objects.values_list("pk", "content_type__model", "codename"))


def names(found):
    return {row[1:] for row in found}


def test_rows_go_and_permissions_stay():
    flush()
    before = permissions()
    LotFactory()
    flush()
    assert not Lot.objects.exists()
    assert permissions() == before != set()


def take():
    Permission.objects.latest("pk").delete()


def add():
    kind = ContentType.objects.latest("pk")
    Permission.objects.create(codename="dance", name="May dance", content_type=kind)


def rename():
    Permission.objects.update(name="May dance")


@pytest.mark.parametrize("change", [take, add, rename])
def test_permissions_that_a_test_changed_are_made_anew(change):
    flush()
    before, texts = permissions(), set(Permission.objects.values_list("name"))
    change()
    flush()
    assert names(permissions()) == names(before)
    assert set(Permission.objects.values_list("name")) == texts
    ContentType.objects.get_for_model(Lot)
    assert Permission.objects.filter(content_type__model="lot").exists()
