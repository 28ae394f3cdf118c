"""The plain decoder of EXL3: bit streams of 16x16 tiles to weights, in numpy. Slow, obviously right, the oracle.

    tile: 16 K words of 16 bits = a ring of 256 K bits            position i -> (row, column), i = 0 .. 255
      uint32 words in order, each from bit 31 down to bit 0         row = 2 (i / 8 % 4) + i % 2 + 8 (i / 2 % 2)
      ... [ k new bits ][ k new bits ] ...                          column = i / 32 + 8 (i / 4 % 2)
      state i = the 16 bits that end where symbol i ends

K = 1 .. 8 bits, or 1.5, 2.5, 3.5, where symbols of floor(K) and floor(K) + 1 bits alternate; `rate2` is 2 K. A codebook
maps a state to a weight by integer arithmetic. The matrix is W = diag(suh) Hd decode(tiles) Hd diag(svh), with Hd the
orthonormal Hadamard matrix of blocks of 128. Format: exllamav3 (turboderp); a variant of QTIP (Tseng et al. 2024).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exllama.reference import hadamard

Codebook = Literal["3inst", "mcg", "mul1"]
Words = NDArray[np.uint16]
Halves = NDArray[np.float16]
Doubles = NDArray[np.float64]

TILE = 16
BLOCK = 128  # features that one Hadamard matrix mixes; both sides of a matrix are padded to multiples of it
RATES2 = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
MARKERS: dict[str, Codebook] = {"mcg": "mcg", "mul1": "mul1"}
MULTIPLIER = {"3inst": (89226354, 64248484), "mcg": (0xCBAC1FED, 0), "mul1": (0x83DCD12D, 0)}
MUL1_SCALE, MUL1_OFFSET = 0.00676727294921875, -10.3828125  # fp16 0x1eee and 0xc931

_ROWS, _COLUMNS = np.arange(TILE)[:, None], np.arange(TILE)[None, :]
# (row, column) -> position in the stream
_POSITION = (
    32 * (_COLUMNS % 8) + 8 * (_ROWS // 2 % 4) + 4 * (_COLUMNS // 8) + 2 * (_ROWS // 8) + _ROWS % 2
)  # fmt: skip
_HADAMARD: Doubles = hadamard(BLOCK).numpy()


def states(tiles: Words, rate2: int) -> NDArray[np.uint32]:
    """The 256 states of every tile: (..., 8 * rate2) words as in the file -> (..., 256)."""
    count = 8 * rate2
    stream = tiles[..., np.arange(count) ^ 1].astype(np.uint32)  # the upper half of a little-endian uint32 comes first
    end = (np.arange(256) + 1) * rate2 // 2
    last = (end - 1) // 16
    pairs = stream[..., last - 1] << np.uint32(16) | stream[..., last]  # index -1: the stream is a ring
    state: NDArray[np.uint32] = (pairs >> (16 * (last + 1) - end).astype(np.uint32)) & np.uint32(0xFFFF)
    return state


def codebook_values(state: NDArray[Any], codebook: Codebook) -> Halves:
    """States of 16 bits -> weights before rotation and scales, exactly as float16."""
    multiplier, addend = MULTIPLIER[codebook]
    x = (state.astype(np.uint64) * np.uint64(multiplier) + np.uint64(addend)).astype(np.uint32)
    if codebook == "mul1":
        total = x.view(np.uint8).reshape(*x.shape, 4).sum(-1, dtype=np.uint32)
        affine: Halves = ((1024.0 + total) * MUL1_SCALE + MUL1_OFFSET).astype(np.float16)  # exact, then one rounding
        return affine
    x = (x & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)
    halves = x.astype("<u4").view("<f2").reshape(*x.shape, 2)
    value: Halves = halves[..., 0] + halves[..., 1]
    return value


def decode_tiles(trellis: NDArray[np.int16], codebook: Codebook) -> Halves:
    """(K/16, N/16, 8 * rate2) int16 as in the file -> (K, N) before rotation and scales."""
    words = np.ascontiguousarray(trellis).view(np.uint16)
    table = codebook_values(np.arange(1 << 16), codebook)
    tiles = table[states(words, words.shape[-1] // 8)][..., _POSITION]  # (K/16, N/16, 16, 16)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3)).reshape(TILE * len(tiles), -1)


def rotate_columns(matrix: Doubles) -> Doubles:
    """Hadamard-128 along the second axis of (rows, n * 128); its own inverse."""
    return (matrix.reshape(-1, BLOCK) @ _HADAMARD).reshape(matrix.shape)


def dequantize(trellis: NDArray[np.int16], suh: Doubles, svh: Doubles, codebook: Codebook) -> Doubles:
    """The matrix as torch has it, (N, K): tiles of (K/16, N/16, 8 * rate2), scales suh (K,) and svh (N,)."""
    return unrotate(decode_tiles(trellis, codebook).astype(np.float64), suh, svh)


def unrotate(values: Doubles, suh: Doubles, svh: Doubles) -> Doubles:
    """Decoded tiles (K, N) to the matrix as torch has it, (N, K)."""
    return rotate_columns(np.ascontiguousarray((rotate_columns(values) * svh).T)) * suh


def signs(words: NDArray[np.int16]) -> Doubles:
    """Scales of old files: bit j of word i is set where element 16 i + j is -1."""
    bits = np.unpackbits(np.ascontiguousarray(words).astype("<i2").view(np.uint8), bitorder="little")
    return 1.0 - 2.0 * bits.astype(np.float64)
