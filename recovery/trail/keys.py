"""The keys that seals are signed with: the newest signs, all of them verify."""

import hmac
from hashlib import sha256

from django.conf import settings
from django.utils.crypto import salted_hmac

from recovery.models.seals import KEY_NAME_LENGTH

SALT = "recovery.trail.keys"


def all_keys() -> dict[str, bytes]:
    """Return the keys by their names, the one that signs first.

    Those made of ``SECRET_KEY`` and its fallbacks are the last: they sign where there is no
    other one, and verify what was sealed before there was.
    """
    secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    made = [salted_hmac(SALT, "seal", it, algorithm="sha256").digest() for it in secrets]
    return own_keys() | {name_of(key): key for key in made}


def own_keys() -> dict[str, bytes]:
    """Return the keys of ``AUDIT_SEAL_KEYS`` by their names."""
    return {name_of(key.encode()): key.encode() for key in settings.AUDIT_SEAL_KEYS}


def name_of(key: bytes) -> str:
    """Return what a key is called, which does not tell what it is."""
    return hmac.new(key, b"name", sha256).hexdigest()[:KEY_NAME_LENGTH]


def mac_of(key: bytes, seal_hash: str) -> str:
    """Return the HMAC-SHA-256 of a seal's hash, as text, in hexadecimal."""
    return hmac.new(key, seal_hash.encode(), sha256).hexdigest()
