"""Random numbers without state: Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

A number is a function of (seed, position, stream), so it depends neither on the batch nor on what was drawn before.
"""

from __future__ import annotations

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The 128 random bits of a 128-bit counter under a 64-bit key, all in words of 32 bits, lowest first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int, stream: int = 0) -> float:
    """A number in [0, 1) with 53 random bits.

    seed: 64 bits, the key. position: 64 bits, the low half of the counter. stream: 32 bits, separates what one position
    may need several numbers for; 0 is the draw of the token.
    """
    a, b, _, _ = philox4x32((position & _MASK, position >> 32, stream, 0), (seed & _MASK, seed >> 32))
    return ((a >> 5) * 67108864 + (b >> 6)) / 9007199254740992
