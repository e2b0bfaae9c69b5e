"""Texts as every database can store them."""

ERROR_MAX_LENGTH = 4_000


def stored_text(text: str, limit: int = ERROR_MAX_LENGTH) -> str:
    """Return ``text`` as every database can store it: no lone surrogates, no NUL, not too long."""
    clean = text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
