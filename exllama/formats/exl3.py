"""EXL3: a matrix of K x N weights as a trellis, signs and scales of both sides, and a mark that names the codebook.

    key.trellis  int16 (K/16, N/16, 16 * bits)   the ring of each 16x16 tile, see trellis.py
    key.suh      fp16 (K,)                       sign times scale, input side; old files: key.su, int16 (K/16,) signs
    key.svh      fp16 (N,)                       the same, output side; old files: key.sv
    key.mul1 | key.mcg   int32                   which codebook; neither: 3INST

K and N are the features of the layer padded to multiples of 128. Bits may differ from matrix to matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from exllama import ops
from exllama.errors import FormatError
from exllama.formats.composite import Composite, Expand
from exllama.formats.expansion import expand_rows
from exllama.formats.stored import StoredTensor, TensorStore
from exllama.formats.trellis import BLOCK, MARKERS, RATES2, TILE, Codebook, Doubles, dequantize, signs
from exllama.ops import Weight

_STAGING = 8 << 20  # bytes of tiles that exist beside the packed weight


@dataclass(frozen=True)
class Linear:
    """A matrix whose tensors passed all checks. suh (K,), svh (N,): float64, exact."""

    trellis: StoredTensor
    suh: Doubles
    svh: Doubles
    codebook: Codebook

    @property
    def rate2(self) -> int:
        """Twice the bits per weight."""
        return self.trellis.shape[2] // 8

    def tiles(self, start: int, stop: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
        """Rows start .. stop - 1 of tiles, (stop - start, N/16, 16 * bits)."""
        _, across, words = self.trellis.shape
        return self.trellis.read_rows(start * across, stop * across).view("<i2").reshape(-1, across, words)

    def dequantize(self) -> torch.Tensor:
        """(N, K) float32, padding included, by the plain decoder."""
        tiles, step = self.tiles(0, self.trellis.shape[0]), BLOCK // TILE
        values = torch.empty(len(self.svh), len(self.suh))
        for band in range(0, self.trellis.shape[1], step):  # what a Hadamard matrix of the output side mixes
            columns = slice(TILE * band, TILE * (band + step))
            block = dequantize(tiles[:, band : band + step], self.suh, self.svh[columns], self.codebook)
            values[columns] = torch.from_numpy(block.astype(np.float32))
        return values


def read_linear(store: TensorStore, key: str, shape: tuple[int, int]) -> Linear:
    """Finds and checks the tensors of a matrix (out_features, in_features). Raises FormatError naming the tensor."""
    trellis = store.tensors[f"{key}.trellis"]
    rows, columns = (-(-size // BLOCK) * BLOCK for size in shape)
    _check_trellis(trellis, (columns // TILE, rows // TILE))
    codebook = _codebook(store, key, trellis)
    _refuse_scale(store, key)
    return Linear(trellis, _side(store, key, "suh", "su", columns), _side(store, key, "svh", "sv", rows), codebook)


def load(store: TensorStore, key: str, shape: tuple[int, int], device: str, expand: Expand | None) -> Weight:
    """See Composite. The device "reference" multiplies by what the plain decoder says."""
    linear = read_linear(store, key, shape)
    if expand or device == "reference":
        values = linear.dequantize()[:, : shape[1]].numpy()
        return expand_rows(shape, device, lambda start, stop: values[start:stop], "float32")
    packer = ops.pack_trellis(shape, linear.rate2 / 2, linear.codebook, (linear.suh, linear.svh), device)
    down, across, words = linear.trellis.shape
    step = max(1, _STAGING // (2 * across * words))
    for start in range(0, down, step):
        packer.add_tiles(start, linear.tiles(start, min(start + step, down)))
    return packer.finish()


def _check_trellis(trellis: StoredTensor, tiles: tuple[int, int]) -> None:
    if trellis.type != "I16":
        raise FormatError(trellis.file, f"dtype of {trellis.name}", trellis.type, "I16")
    words = [8 * rate2 for rate2 in RATES2]
    if len(trellis.shape) != 3 or trellis.shape[:2] != tiles or trellis.shape[2] not in words:
        expected = f"{tiles} tiles for the padded features, and one of {words} words each"
        raise FormatError(trellis.file, f"shape of {trellis.name}", trellis.shape, expected)


def _codebook(store: TensorStore, key: str, trellis: StoredTensor) -> Codebook:
    found = [marker for marker in MARKERS if f"{key}.{marker}" in store.tensors]
    if len(found) > 1:
        raise FormatError(trellis.file, key, " and ".join(found), "one codebook")
    for marker in found:
        tensor = store.tensors[f"{key}.{marker}"]
        if tensor.type != "I32" or tensor.nbytes != 4:
            raise FormatError(tensor.file, tensor.name, f"{tensor.type} {tensor.shape}", "one I32")
    codebook: Codebook = MARKERS[found[0]] if found else "3inst"
    if trellis.shape[2] % 16 and codebook != "mul1":
        found_bits = f"{trellis.shape[2] / 16} bits per weight with the codebook {codebook}"
        raise FormatError(trellis.file, f"shape of {trellis.name}", found_bits, "whole bits, or the codebook mul1")
    return codebook


def _side(store: TensorStore, key: str, scales: str, old: str, size: int) -> Doubles:
    """Scales of one side, (size,): the fp16 numbers of new files or the signs of old ones."""
    names = [part for part in (scales, old) if f"{key}.{part}" in store.tensors]
    if len(names) != 1:
        raise FormatError(store.path, key, " and ".join(names) or "no scales", f"one of {key}.{scales}, {key}.{old}")
    tensor = store.tensors[f"{key}.{names[0]}"]
    kind, shape = ("F16", (size,)) if names[0] == scales else ("I16", (size // 16,))
    if tensor.type != kind:
        raise FormatError(tensor.file, f"dtype of {tensor.name}", tensor.type, kind)
    if tensor.shape != shape:
        raise FormatError(tensor.file, f"shape of {tensor.name}", tensor.shape, shape)
    raw = tensor.read_rows(0, 1).reshape(-1)
    if kind == "I16":
        return signs(raw.view("<i2"))
    values = raw.view("<f2").astype(np.float64)
    if not np.isfinite(values).all():
        raise FormatError(tensor.file, tensor.name, "a scale that is not finite", "finite scales")
    return values


def _refuse_scale(store: TensorStore, key: str) -> None:
    """An obsolete factor, which nothing but 1 was ever written to by what reads it as nothing."""
    scale = store.tensors.get(f"{key}.scale")
    if scale is None:
        return
    kinds = {"F16": "<f2", "F32": "<f4"}
    if scale.type not in kinds or scale.nbytes > 4:
        raise FormatError(scale.file, scale.name, f"{scale.type} {scale.shape}", "one F16 or F32")
    value = float(scale.read_rows(0, 1).view(kinds[scale.type])[0, 0]) if scale.nbytes else float("nan")
    if value != 1.0:
        raise FormatError(scale.file, scale.name, value, "1, the only value that is supported")


COMPOSITE = Composite(
    name="EXL3",
    marker="trellis",
    parts=("trellis", "suh", "svh", "su", "sv", "mcg", "mul1", "scale"),
    load=load,
    padding=BLOCK,
)
