"""EXL3: scales and signs that make a matrix Gaussian, LDLQ along its Hessian, and the trellis search.

    W = diag(suh) Hd What Hd diag(svh)      W (in, out), padded with zeros to multiples of 128; Hd: Hadamard-128
    H' = Hd diag(suh) H diag(suh) Hd        what an error of What costs

suh and svh carry random signs. svh has the size of columns, suh that of rows times what gives What the spread that the
rate likes best; both are rounded to fp16 before anything is divided by them. After the search svh is fitted anew, a
least-squares problem of one unknown a column. Method: exllamav3 (turboderp), after QTIP (Tseng et al. 2024).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exllama import ops
from exllama.errors import ConversionError
from exllama.formats.trellis import BLOCK, MULTIPLIER, RATES2, TILE, Codebook, codebook_values, rotate_columns, unrotate

from .ldlq import Doubles, damped, feedback
from .quantizer import Quantized
from .trellis_search import TrellisSearch

VERSION = "1.6.5"  # of exllamav3, whose files these are
CHUNK = 4096  # output features in the works at a time
LEAST_SCALE = 2.0**-10  # of suh on average; fp16 loses bits below 2^-14

# Spread of What in units of the codebook's, best in the LDLQ of a model: wide targets are clipped, narrow ones coarse.
SPREAD = {1: 0.98, 1.5: 0.97, 2: 0.96, 2.5: 0.95, 3: 0.94, 3.5: 0.92, 4: 0.91, 5: 0.88, 6: 0.86, 7: 0.84, 8: 0.82}


class Exl3Quantizer:
    """See Quantizer. codebook: "mul1", "mcg" or "3inst"; half rates need mul1. threads: None for all."""

    name = "exl3"

    def __init__(self, codebook: str = "mul1", threads: int | None = None) -> None:
        if codebook not in MULTIPLIER:
            raise ConversionError(f"EXL3 has no codebook {codebook!r}: take one of {', '.join(MULTIPLIER)}")
        self.codebook: Codebook = codebook  # type: ignore[assignment]
        self.rates = tuple(rate2 / 2 for rate2 in RATES2 if codebook == "mul1" or rate2 % 2 == 0)
        self._threads = threads or ops.default_threads()
        self._unit = float(codebook_values(np.arange(1 << 16), self.codebook).astype(np.float64).std())

    def bits(self, out_features: int, in_features: int, rate: float) -> float:
        self._check_rate(rate)
        across, down = padded(out_features), padded(in_features)
        marker = 32 if self.codebook != "3inst" else 0
        return (across * down * rate + 16 * (across + down) + marker) / (out_features * in_features)

    def quantize(self, weight: torch.Tensor, hessian: torch.Tensor, rate: float, seed: int) -> Quantized:
        self._check_rate(rate)
        matrix, moments = checked(weight, hessian)
        rows, columns = matrix.shape
        costs = np.eye(padded(rows)) * 1e-2  # of errors of padding, which meet no activation
        costs[:rows, :rows] = damped(moments)
        suh, svh = self._scales(matrix, rate, seed)
        costs = rotate_columns(np.ascontiguousarray(rotate_columns(costs * suh * suh[:, None]).T))
        factor = feedback(costs, self._threads)
        search = TrellisSearch(rate, self.codebook, self._threads)
        across = len(svh) // TILE
        tiles = np.empty((len(suh) // TILE, across, int(TILE * rate)), np.int16)
        result = torch.empty(columns, rows)
        for start in range(0, len(svh), CHUNK):
            part = slice(start, min(start + CHUNK, len(svh)))
            wanted = np.zeros((len(suh), part.stop - part.start))
            inside = matrix[:, part]
            wanted[:rows, : inside.shape[1]] = inside
            wanted = rotate_rows(wanted / suh[:, None])
            targets = rotate_columns(wanted / np.where(svh[part] == 0, 1, svh[part])).astype(np.float32)
            tiles[:, start // TILE : part.stop // TILE], values = search.quantize(targets, factor)
            svh[part] = fitted(wanted, values, costs, svh[part])
            whole = unrotate(values.astype(np.float64), suh, svh[part])[: inside.shape[1], :rows]
            result[start : start + len(whole)] = torch.from_numpy(whole.astype(np.float32))
        return Quantized(self._tensors(tiles, suh, svh), result)

    def config(self, mean_bits: float, head_bits: float) -> dict[str, Any]:
        return {
            "quant_method": self.name,
            "version": VERSION,
            "bits": round(mean_bits, 2),
            "head_bits": round(head_bits),
            "codebook": self.codebook,
        }

    def _check_rate(self, rate: float) -> None:
        if rate not in self.rates:
            offered = ", ".join(f"{each:g}" for each in self.rates)
            raise ConversionError(f"EXL3 with the codebook {self.codebook} has no rate of {rate} bits: take {offered}")

    def _scales(self, matrix: Doubles, rate: float, seed: int) -> tuple[Doubles, Doubles]:
        """suh and svh, padded, exact in fp16. svh is 0 in padding and where a column is 0."""
        rows, columns = matrix.shape
        down, across = padded(rows), padded(columns)
        sizes = np.sqrt((matrix**2).mean(0))
        level = float(sizes.mean()) or 1.0
        svh = np.zeros(across)
        svh[:columns] = sizes / level
        whole = np.zeros((down, columns))
        np.divide(matrix, svh[:columns], out=whole[:rows], where=svh[:columns] != 0)
        suh = np.sqrt((whole**2).mean(1) * columns / across)
        suh[suh == 0] = suh.mean() or 1.0
        suh /= SPREAD[rate] * self._unit
        moved = 2.0 ** max(0, np.ceil(np.log2(LEAST_SCALE / suh.mean())))
        suh, svh = suh * moved, svh / moved
        sign = signs(seed, down + across)
        suh, svh = half(suh * sign[:down], "suh"), half(svh * sign[down:], "svh")
        return suh, svh

    def _tensors(self, tiles: NDArray[np.int16], suh: Doubles, svh: Doubles) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {
            "trellis": tiles,
            "suh": suh.astype(np.float16),
            "svh": svh.astype(np.float16),
        }
        if self.codebook != "3inst":
            tensors[self.codebook] = np.array(MULTIPLIER[self.codebook][0], np.uint32).view(np.int32)
        return tensors


def padded(features: int) -> int:
    return -(-features // BLOCK) * BLOCK


def checked(weight: torch.Tensor, hessian: torch.Tensor) -> tuple[Doubles, Doubles]:
    """Both in float64, the weight as (in, out). Raises ConversionError for what no format can hold."""
    if weight.ndim != 2 or 0 in weight.shape or hessian.shape != (weight.shape[1],) * 2:
        shapes = f"a weight {tuple(weight.shape)} and a Hessian {tuple(hessian.shape)}"
        raise ConversionError(f"{shapes} were given, expected (out, in) and (in, in)")
    for what, tensor in (("weight", weight), ("Hessian", hessian)):
        if not bool(torch.isfinite(tensor).all()):
            raise ConversionError(f"a number of the {what} is NaN or infinite")
    return weight.double().numpy().T, hessian.double().numpy()


def signs(seed: int, count: int) -> Doubles:
    """-1 or 1 each, from the raw bits of PCG64, which no version of numpy changes."""
    words = np.random.PCG64(seed).random_raw(-(-count // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:count]
    return 1.0 - 2.0 * bits.astype(np.float64)


def half(values: Doubles, what: str) -> Doubles:
    """The nearest numbers of fp16; those too small for it become the least there is, so that they can divide."""
    if np.abs(values).max() > 65504:
        raise ConversionError(f"{what} would need a scale of {np.abs(values).max():.3g}, and fp16 ends at 65504")
    rounded = values.astype(np.float16).astype(np.float64)
    return np.where((rounded == 0) & (values != 0), np.copysign(2.0**-24, values), rounded)


def rotate_rows(matrix: Doubles) -> Doubles:
    """Hadamard-128 along the first axis."""
    return np.ascontiguousarray(rotate_columns(np.ascontiguousarray(matrix.T)).T)


def fitted(wanted: Doubles, values: NDArray[np.float32], costs: Doubles, svh: Doubles) -> Doubles:
    """svh anew: of each column the factor with the least cost. wanted: what values Hd diag(svh) should be."""
    found = rotate_columns(values.astype(np.float64))
    weighted = costs @ found  # rounding to fp16 hides in which order sums are taken
    top, below = (weighted * wanted).sum(0), (weighted * found).sum(0)
    factors = np.divide(top, below, out=svh.copy(), where=(below > 0) & (svh != 0))
    return half(np.where(np.abs(factors) < 65504, factors, svh), "svh")
