"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 with one fp16 scale d and, in the _1 types, a minimum m.

Q4_0, 18 bytes                              Q5_1, 24 bytes
byte 0..1    2           17                 byte 0..1  2..3   4..7       8            23
  [ half d ][q16|q0] .. [q31|q15]             [ d ][ m ][ bit 4 of q ][q16|q0] .. [q31|q15]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exllama.formats.blocks import cut_blocks, half, join_rows, nibbles, signed
from exllama.formats.format import Format
from exllama.formats.stored import Bytes, Floats


def _fifth_bits(blocks: Bytes, offset: int) -> Bytes:
    """16 * bit j of the 32-bit field, (blocks, 32)."""
    bits: Bytes = np.unpackbits(blocks[:, offset : offset + 4], axis=1, bitorder="little") * np.uint8(16)
    return bits


def _q4_0(blocks: Bytes) -> Floats:
    return half(blocks, 0) * (nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return half(blocks, 0) * nibbles(blocks[:, 4:]).astype(np.float32) + half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    return half(blocks, 0) * ((nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    return half(blocks, 0) * (nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)).astype(np.float32) + half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return half(blocks, 0) * signed(np.ascontiguousarray(blocks[:, 2:]))


def _format(name: str, decode: Callable[[Bytes], Floats]) -> Format:
    return Format(name, "GroupAffine", name, lambda raw: join_rows(decode(cut_blocks(raw, name)), len(raw)))


_DECODERS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0}
FORMATS = {name: _format(name, decode) for name, decode in _DECODERS.items()}
