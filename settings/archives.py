"""Where archives of audit records are kept: a folder, or a bucket by the extra ``s3``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from settings.env import env

SEAL_KEY_MIN_CHARS = 32
BUCKET = "s3://"

AUDIT_SEAL_KEYS = env.words("AUDIT_SEAL_KEYS", ())
if any(len(key) < SEAL_KEY_MIN_CHARS for key in AUDIT_SEAL_KEYS):
    env.refuse(
        "AUDIT_SEAL_KEYS",
        f"keys of {SEAL_KEY_MIN_CHARS} characters or more with commas between, the newest first",
        secret=True,
    )
    AUDIT_SEAL_KEYS = []
AUDIT_TRIGGERS = env.boolean("AUDIT_TRIGGERS", default=True)
AUDIT_S3_ENDPOINT = env.url("AUDIT_S3_ENDPOINT", ("http", "https"), "https://s3.example.com")


def storage_of(key: str, default: Path) -> dict[str, Any]:
    """Return the storage that the variable ``key`` names: a folder, or ``s3://bucket/prefix``."""
    place = env.text(key)
    if place.startswith(BUCKET):
        return _bucket(key, place)
    if "://" in place:
        env.refuse(key, "a folder, or s3://bucket/prefix")
        place = ""
    return {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {
            "location": str(Path(place).resolve() if place else default),
            "file_permissions_mode": 0o640,
            "directory_permissions_mode": 0o750,
        },
    }


def _bucket(key: str, place: str) -> dict[str, Any]:
    if find_spec("storages") is None:
        env.refuse(key, "a folder, as long as pip install 'split-recovery[s3]' was not run")
    parts = urlsplit(place)
    if not parts.netloc or "@" in parts.netloc:
        env.refuse(key, "s3://bucket/prefix (credentials go by AWS's own variables)", secret=True)
    options: dict[str, Any] = {
        "bucket_name": parts.netloc,
        "location": parts.path.strip("/"),
        "file_overwrite": True,  # a name is written again after a crash, with the same records
        "default_acl": None,
        "querystring_auth": False,
    }
    if AUDIT_S3_ENDPOINT:
        options["endpoint_url"] = AUDIT_S3_ENDPOINT
    return {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options}
