"""What every device offers to the engine: weights, cache storage, and the plan that a forward pass is recorded on.

A `Plan` belongs to one device. Modules record operations on it once; `run` replays them for any number of rows up to
`max_rows`. On a CPU a run is one native call. Numerics obey DESIGN section 7: what a row computes depends on that row
and its own sequence alone.

Notation: R = rows of this run (tokens of all sequences, those of one sequence adjacent and in order), K = in_features,
N = out_features, H = query heads, G = key/value heads, D = head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

PAGE_SIZE = 256  # tokens per KV page


class Weight(Protocol):
    """A matrix (N, K) of one of the three families, resident on a device in the layout that its kernels read."""

    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int: ...

    def dequantize(self) -> torch.Tensor:
        """The exact values, (N, K) float32, on the CPU."""
        ...


class WeightPacker(Protocol):
    """Takes a matrix row by row from a file; nothing but the packed result is kept."""

    def add_rows(self, start_row: int, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """raw: (rows, row_bytes) uint8 as in the file; start_row: a multiple of 16."""
        ...

    def finish(self) -> Weight: ...


@dataclass(frozen=True)
class Buffer:
    """Activations of a plan, (max_rows, width) float32; only the first R rows of a run are valid."""

    width: int
    index: int


@dataclass(frozen=True)
class Projection:
    """out = x @ weight.T + bias, or out += ... when `add`; bias is (N,) float32 or None."""

    weight: Weight
    out: Buffer
    bias: torch.Tensor | None = None
    add: bool = False


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight; weight is (width,) float32."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True)
class Rope:
    """Half-split rotary embedding over the first 2 * len(inv_freq) features of a head.

    Angle of pair (i, i + rot/2) at position p is float32(p) * inv_freq[i]; cos and sin are multiplied by `scale` (yarn,
    longrope).
    """

    inv_freq: torch.Tensor  # (rot / 2,) float32
    scale: float = 1.0


class LayerCache(Protocol):
    """The K and V pages of one layer (see cache/storage.py)."""

    num_kv_heads: int
    head_dim: int

    @property
    def nbytes(self) -> int: ...

    def copy_page(self, source: int, target: int) -> None:
        """Copies keys and values of one page."""
        ...

    def read_page(self, page: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A copy of the bytes of a page, (nbytes / number of pages,) uint8."""
        ...

    def write_page(self, page: int, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Gives a page bytes that read_page returned."""
        ...


Activation = Literal["silu", "gelu_tanh", "gelu"]


class Plan(Protocol):
    """What a device offers to record a forward pass on.

    faults: rows of the last run with a key or value that its cache cannot hold (NaN, infinity, beyond fp16), and which
    `rope_and_store`, counted from 0 in the order of recording, met it first. Logits of their sequences mean nothing;
    other sequences are as they would be without them.
    """

    max_rows: int
    faults: dict[int, int]

    def buffer(self, width: int) -> Buffer:
        """A new activation buffer."""
        ...

    def embed(self, table: Weight, out: Buffer, multiplier: float = 1.0) -> None:
        """out[r] = table[token_ids[r]] * multiplier."""
        ...

    def linear(
        self, x: Buffer, projections: Sequence[Projection], norm: Norm | None = None, precise: bool = False
    ) -> None:
        """Projections that share one input, optionally normalised first.

        precise: where a kernel rounds activations to 8 bits, it keeps 15; doubles the integer work of many rows.
        """
        ...

    def gated_linear(
        self, x: Buffer, gate: Projection, up: Projection, activation: Activation, norm: Norm | None = None
    ) -> None:
        """gate.out = activation(x @ gate.T) * (x @ up.T); up.out is ignored. gate and up have equal shapes."""
        ...

    def rope_and_store(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        cache: LayerCache,
        rope: Rope | None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        """q/k norm per head, rotary embedding in place on q (R, H*D) and k (R, G*D), k and v into the cache pages."""
        ...

    def attention(
        self,
        q: Buffer,
        out: Buffer,
        cache: LayerCache,
        scale: float,
        window: int | None = None,
        softcap: float = 0.0,
    ) -> None:
        """Causal paged attention of q (R, H*D) over the row's sequence. Position p sees [max(0, p - window + 1), p].

        softcap > 0: scores become softcap * tanh(score / softcap). Query head h reads kv head h * G // H.
        """
        ...

    def logits(self, x: Buffer, head: Weight, norm: Norm | None = None, softcap: float = 0.0) -> None:
        """Records the end of the pass: norm and head for the rows asked for (`logit_rows`)."""
        ...

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
    ) -> torch.Tensor:
        """Replays the pass.

        token_ids, positions, sequences: (R,) int32; sequences[r] is the row of page_table (S, P) int32 of r's sequence;
        page_table[s, i] is the page that holds positions 256 i .. 256 i + 255. logit_rows: (L,) int32 row indices.
        Returns (L, vocab) float32, valid until the next run.
        """
        ...
