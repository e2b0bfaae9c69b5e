"""Archives in a bucket that speaks S3, as far as moto does; written, killed, moved, read."""

import json

import boto3
import pytest
from moto.server import ThreadedMotoServer
from storages.backends.s3 import S3Storage

from recovery.models import AuditArchive, Tier
from recovery.search import Search, archived_of, find
from recovery.trail.stores import Store
from settings.archives import storage_of
from settings.env import env
from tests.recovery.trail.records import ARCHIVE, done, lines_in_table, ran, sealed
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

WARM, COLD = "s3://audit/warm", "s3://audit-cold/cold"
SHORT = {"JOB_LOCK_TTL_SEC": "2", "SPLIT_COMPLETION_TIMEOUT_SEC": "1"}


@pytest.fixture(scope="module")
def endpoint():
    """Run moto; return its address."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _host, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, settings, monkeypatch, tmp_path):
    """Keep both tiers in buckets; return the environment that says so."""
    login = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint)
    for name in ("audit", "audit-cold"):
        client.create_bucket(Bucket=name)
    mine = {"AUDIT_ARCHIVE": WARM, "AUDIT_COLD": COLD, "AUDIT_S3_ENDPOINT": endpoint}
    monkeypatch.setattr("settings.archives.AUDIT_S3_ENDPOINT", endpoint)
    monkeypatch.setattr(env, "environ", mine)
    settings.STORAGES = settings.STORAGES | {
        "audit_archive": storage_of("AUDIT_ARCHIVE", tmp_path),
        "audit_cold": storage_of("AUDIT_COLD", tmp_path),
    }
    yield login | mine
    for name in ("audit", "audit-cold"):
        for it in client.list_objects_v2(Bucket=name).get("Contents", ()):
            client.delete_object(Bucket=name, Key=it["Key"])
    client.close()


def keys(endpoint, name):
    """Return the names in a bucket."""
    client = boto3.client("s3", endpoint_url=endpoint)
    found = client.list_objects_v2(Bucket=name).get("Contents", ())
    client.close()
    return [it["Key"] for it in found]


@pytest.mark.usefixtures("bucket")
def test_records_move_into_the_bucket_and_are_found_there(endpoint, settings):
    settings.AUDIT_WARM_DAYS = 150
    ids = sealed(3, days_ago=160) + sealed(3, days_ago=100)
    assert ran(ARCHIVE).status == "ok"
    cold, warm = AuditArchive.objects.order_by("day")
    assert keys(endpoint, "audit") == [f"warm/{warm.name}"]
    assert keys(endpoint, "audit-cold") == [f"cold/{cold.name}"]
    assert not Store(Tier.WARM).has(cold.name)
    assert [list(Store(it).names()) for it in (Tier.WARM, Tier.COLD)] == [[warm.name], [cold.name]]
    assert [it.pk for it in find(Search(action="job-paused"))] == ids[::-1]
    assert done().findings == []


@pytest.mark.usefixtures("bucket")
def test_file_that_is_put_away_before_its_first_byte_is_read_is_found_where_it_is(
    settings, monkeypatch
):
    ids = sealed(3, days_ago=200)
    ran(ARCHIVE)
    settings.AUDIT_WARM_DAYS = 100
    open_one = S3Storage.open

    def opened(storage, *given):
        monkeypatch.setattr(S3Storage, "open", open_one)
        found = open_one(storage, *given)
        ran(ARCHIVE)
        return found

    monkeypatch.setattr(S3Storage, "open", opened)
    wanted = Search(action="job-paused")
    read = archived_of(wanted)
    assert [it.pk for it in find(wanted, read)] == ids[::-1]
    assert (read.troubles, AuditArchive.objects.get().tier) == ([], Tier.COLD)


def test_file_of_a_bucket_that_is_gone_is_missed(bucket, endpoint):
    (first, *_rest) = sealed(3, days_ago=100)
    ran(ARCHIVE)
    Store(Tier.WARM).remove(AuditArchive.objects.get().name)
    assert [(it.what, it.record) for it in done().findings] == [("file-missing", first)]


@pytest.mark.parametrize(
    "point", ["archive.before_rename", "archive.after_rename", "archive.before_delete"]
)
def test_archiver_that_dies_is_ended_by_the_next_run(manage, bucket, endpoint, point):
    for days in (100, 101):
        sealed(3, days_ago=days)
    before = lines_in_table()
    fault = {"RECOVERY_FAULTPOINTS": f"{point}=crash@2"}
    broken = manage("run_job", ARCHIVE, env=bucket | SHORT | fault)
    assert broken.returncode == -9, broken.stderr
    assert done().findings == []
    eventually(lambda: ran(ARCHIVE).status == "ok")
    assert len(keys(endpoint, "audit")) == 2
    assert AuditArchive.objects.done().count() == 2
    found = {it.pk: it for it in find(Search(action="job-paused"))}
    assert found.keys() == before.keys()
    assert done().findings == []


def test_bucket_that_is_away_loses_nothing(bucket, settings, monkeypatch):
    monkeypatch.setattr("settings.archives.AUDIT_S3_ENDPOINT", "http://127.0.0.1:9")
    away = json.loads(json.dumps(settings.STORAGES))
    away["audit_archive"]["OPTIONS"]["endpoint_url"] = "http://127.0.0.1:9"
    there = settings.STORAGES
    ids = sealed(3, days_ago=100)
    settings.STORAGES = away
    outcome = ran(ARCHIVE)
    assert (outcome.status, "StoreError" in outcome.reason) == ("failed", True)
    assert set(lines_in_table()) == set(ids)
    settings.STORAGES = there
    assert ran(ARCHIVE).status == "ok"
    assert done().findings == []
