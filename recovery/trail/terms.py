"""What an archive may hold, without reading it: a Bloom filter of its exact search terms.

Bloom, «Space/time trade-offs in hash coding with allowable errors» (1970); the two hashes that
stand for many are Kirsch and Mitzenmacher's (2006).
"""

from collections.abc import Collection, Iterator
from hashlib import blake2b

BITS_A_TERM = 10
PROBES = 7
"""With ten bits a term one in a hundred that is not there seems to be."""
LEAST_BYTES = 8
_MASK = (1 << 64) - 1


def term(kind: str, value: object) -> str:
    """Return the term for a value of a kind: ``actor``, ``action``, ``target``, ``run``."""
    return f"{kind}:{value}"


def filter_of(terms: Collection[str]) -> bytes:
    """Return a filter that has all of ``terms``."""
    made = bytearray(max(LEAST_BYTES, -(-len(terms) * BITS_A_TERM // 8)))
    for it in terms:
        for bit in _bits(it, len(made)):
            made[bit >> 3] |= 1 << (bit & 7)
    return bytes(made)


def may_have(made: bytes, wanted: str) -> bool:
    """Tell whether a filter may have a term; False: it has not."""
    return all(made[bit >> 3] & (1 << (bit & 7)) for bit in _bits(wanted, len(made)))


def _bits(it: str, size: int) -> Iterator[int]:
    hashed = int.from_bytes(blake2b(it.encode(), digest_size=16).digest(), "big")
    first, step = hashed >> 64, (hashed & _MASK) | 1
    return ((first + probe * step) % (size * 8) for probe in range(PROBES))
