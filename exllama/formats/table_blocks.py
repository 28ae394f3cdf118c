"""IQ4_NL, IQ4_XS, MXFP4, NVFP4 (4-bit indices into a table) and TQ1_0, TQ2_0 (-1, 0, 1): expanded when loaded.

MXFP4 and NVFP4 are powers of two times a few bits, so bfloat16 holds them exactly, and TQ is exact in float16. IQ4
values (an 11-bit by a 7-bit number) are rounded to float16.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exllama.formats.blocks import crumbs, cut_blocks, half, join_rows, nibbles
from exllama.formats.format import Format
from exllama.formats.stored import Bytes, Floats

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _iq4_nl(blocks: Bytes) -> Floats:
    return half(blocks, 0) * _IQ4[nibbles(blocks[:, 2:])]


def _iq4_xs(blocks: Bytes) -> Floats:
    """[ d ][ 16 bits: upper 2 of 8 scales ][ 4 bytes: lower 4 of them ][ 128 bytes ]"""
    upper = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> (2 * np.arange(8, dtype=np.uint16)) & 3
    lower = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    scales = half(blocks, 0) * ((lower | (upper << 4)).astype(np.float32) - 32)
    values: Floats = scales[:, :, None] * _IQ4[nibbles(blocks[:, 8:].reshape(-1, 8, 16))]
    return values


def _mxfp4(blocks: Bytes) -> Floats:
    """[ e ][ 16 bytes ]: 2^(e - 128) times the doubled table."""
    scales: Floats = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return scales * _E2M1_DOUBLED[nibbles(blocks[:, 1:])]


def _unsigned_e4m3(codes: Bytes) -> Floats:
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    values = np.where(exponent == 0, mantissa / 512, np.ldexp(1 + mantissa / 8, exponent - 7))
    return np.where(codes == 127, 0, values).astype(np.float32)


def _nvfp4(blocks: Bytes) -> Floats:
    """[ 4 scales ][ 4 groups of 8 bytes ]"""
    codes = nibbles(blocks[:, 4:].reshape(-1, 4, 8))
    return _unsigned_e4m3(blocks[:, :4])[:, :, None] * 0.5 * _E2M1_DOUBLED[codes]


def _base_3(packed: Bytes, digits: int) -> Bytes:
    """Digit n of every byte, all first digits first: the byte counts 256ths, and each step multiplies by three."""
    powers = 3 ** np.arange(digits, dtype=np.uint16)[:, None]
    shifted = (packed[:, None, :] * powers).astype(np.uint8)
    return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(packed), -1)


def _tq1_0(blocks: Bytes) -> Floats:
    """[ 32 bytes of 5 digits ][ 16 bytes of 5 digits ][ 4 bytes of 4 digits ][ d ]"""
    parts = [_base_3(blocks[:, :32], 5), _base_3(blocks[:, 32:48], 5), _base_3(blocks[:, 48:52], 4)]
    return half(blocks, 52) * (np.concatenate(parts, axis=1).astype(np.float32) - 1)


def _tq2_0(blocks: Bytes) -> Floats:
    return half(blocks, 64) * (crumbs(blocks[:, :64].reshape(-1, 2, 32)).reshape(-1, 256).astype(np.float32) - 1)


def _format(name: str, held: str, decode: Callable[[Bytes], Floats]) -> Format:
    return Format(name, "Dense", held, lambda raw: join_rows(decode(cut_blocks(raw, name)), len(raw)), expanded=True)


_DECODERS: dict[str, tuple[str, Callable[[Bytes], Floats]]] = {
    "IQ4_NL": ("float16", _iq4_nl), "IQ4_XS": ("float16", _iq4_xs), "MXFP4": ("bfloat16", _mxfp4),
    "NVFP4": ("bfloat16", _nvfp4), "TQ1_0": ("float16", _tq1_0), "TQ2_0": ("float16", _tq2_0),
}  # fmt: skip
FORMATS = {name: _format(name, held, decode) for name, (held, decode) in _DECODERS.items()}
