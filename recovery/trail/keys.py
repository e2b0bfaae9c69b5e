"""The keys that seals are signed with: the newest signs, all of them verify."""

import hmac
from hashlib import sha256

from django.conf import settings
from django.utils.crypto import salted_hmac

from recovery.models.seals import KEY_NAME_LENGTH

SALT = "recovery.trail.keys"


def all_keys() -> dict[str, bytes]:
    """Return the keys by their names, the one that signs first.

    Without ``AUDIT_SEAL_KEYS`` they are made of ``SECRET_KEY`` and its fallbacks.
    """
    if settings.AUDIT_SEAL_KEYS:
        keys = [key.encode() for key in settings.AUDIT_SEAL_KEYS]
    else:
        secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
        keys = [salted_hmac(SALT, "seal", it, algorithm="sha256").digest() for it in secrets]
    return {name_of(key): key for key in keys}


def name_of(key: bytes) -> str:
    """Return what a key is called, which does not tell what it is."""
    return hmac.new(key, b"name", sha256).hexdigest()[:KEY_NAME_LENGTH]


def mac_of(key: bytes, seal_hash: str) -> str:
    """Return the HMAC-SHA-256 of a seal's hash, as text, in hexadecimal."""
    return hmac.new(key, seal_hash.encode(), sha256).hexdigest()
