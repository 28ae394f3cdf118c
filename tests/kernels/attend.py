"""One attention launch on random sequences, and what the reference makes of it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from exllama import reference
from tests.kernels import abi
from tests.kernels.library import Library
from tests.kernels.pages import GROUP, PAGE, Array, DeviceCache, values_of

ATTENTION = ["cache/cache", "attention/attention"]


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    key_bits: int = 16
    value_bits: int = 16
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False

    @property
    def packed_keys(self) -> bool:
        return self.key_bits != 16


@dataclass
class Sequences:
    """Keys, values and queries of every position of some sequences, keys and values in pages of a device cache.

    lengths: tokens of each. Queries are rounded to fp16 as the kernel gets them: rotated where keys are packed.
    """

    library: Library
    shape: Shape
    lengths: list[int]
    seed: int = 0
    outputs: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape, random = self.shape, np.random.default_rng(self.seed)
        self.pages_per_sequence = -(-max(self.lengths) // PAGE) + 1
        numbers = random.permutation(len(self.lengths) * self.pages_per_sequence)
        self.table = numbers.reshape(len(self.lengths), -1).astype(np.int32)
        self.cache = DeviceCache(
            self.library, numbers.size, shape.kv_heads, shape.head_dim, shape.key_bits, shape.value_bits
        )
        dims = (shape.kv_heads, shape.head_dim)
        self.k = [random.standard_normal((n, *dims)).astype(np.float16) for n in self.lengths]
        self.v = [random.standard_normal((n, *dims)).astype(np.float16) for n in self.lengths]
        for k, v, table in zip(self.k, self.v, self.table, strict=True):
            self.cache.fill(k, shape.key_bits, self.cache.keys, table)
            self.cache.fill(v, shape.value_bits, self.cache.values, table)
        self.q = [self._queries(random, n) for n in self.lengths]
        self.sinks = random.standard_normal(shape.heads).astype(np.float32) if shape.sinks else None

    def _queries(self, random: np.random.Generator, count: int) -> Array:
        """(T, H, padded_dim) fp16"""
        q = random.standard_normal((count, self.shape.heads, self.shape.head_dim))
        padded = torch.nn.functional.pad(torch.from_numpy(q), (0, self.cache.padded_dim - self.shape.head_dim))
        rounded: Array = (reference.rotate(padded) if self.shape.packed_keys else padded).numpy().astype(np.float16)
        return rounded

    @cached_property
    def expected(self) -> list[Array]:
        """Of each sequence (T, H, D) float64."""
        return [self._reference(s) for s in range(len(self.lengths))]

    def _reference(self, s: int) -> Array:
        shape, dim = self.shape, self.shape.head_dim
        q = torch.from_numpy(self.q[s]).double()
        if shape.packed_keys:
            q = reference.rotate(q)
        # Keys and queries keep their padding: rounding leaves something there.
        pad = torch.nn.functional.pad
        k = values_of(np.asarray(pad(torch.from_numpy(self.k[s]), (0, -dim % GROUP))), shape.key_bits).double()
        v = values_of(self.v[s], shape.value_bits).double()
        q = pad(q, (0, k.shape[-1] - q.shape[-1]))
        positions = torch.arange(self.lengths[s])
        scale = dim**-0.5
        if self.sinks is None:
            return self._attend(q, k, v, positions, scale).numpy()
        # A sink is one more key that everyone sees, with a value of zeros: what it leaves to the others is sum e / all.
        with_ones = self._attend(q, k, torch.ones_like(v), positions, scale)
        assert torch.allclose(with_ones, torch.ones_like(with_ones))
        return (self._attend(q, k, v, positions, scale) * self._share(q, k, positions, scale)).numpy()

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor, scale: float
    ) -> torch.Tensor:
        window = self.shape.window or None
        return reference.attention(q, k, v, positions, scale, window, self.shape.softcap)

    def _share(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, scale: float) -> torch.Tensor:
        """(T, H, 1): the part of all probability that the sink of a head leaves to the tokens."""
        assert self.sinks is not None
        k = k.repeat_interleave(self.shape.heads // self.shape.kv_heads, 1)
        scores = reference.softcap(torch.einsum("rhd,thd->hrt", q, k) * scale, self.shape.softcap)
        seen = torch.arange(len(k))[None, :] <= positions[:, None]
        if self.shape.window:
            seen &= torch.arange(len(k))[None, :] > positions[:, None] - self.shape.window
        total = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
        return torch.sigmoid(total - torch.from_numpy(self.sinks).double()[:, None]).T[..., None]

    def arguments(self, rows: list[tuple[int, int]], splits: int = 1) -> abi.Attention:
        """Of a launch for rows of (sequence, position); a negative position is padding."""
        library, shape, padded = self.library, self.shape, self.cache.padded_dim
        q = np.stack([self.q[s][max(p, 0)] for s, p in rows])
        sequences, positions = (np.array(column, np.int32) for column in zip(*rows, strict=True))
        out = library.empty((len(rows), shape.heads, shape.head_dim), np.float16)
        made = abi.Attention(
            q=library.put(q), out=out, q_stride=shape.heads * padded, out_stride=shape.heads * shape.head_dim,
            num_heads=shape.heads, scale=shape.head_dim**-0.5, window=shape.window, softcap=shape.softcap,
            sinks=0 if self.sinks is None else library.put(self.sinks), cache=self.cache.struct(),
            rows=abi.Rows(
                count=len(rows), pages_per_sequence=self.pages_per_sequence, positions=library.put(positions),
                sequences=library.put(sequences), page_table=library.put(self.table),
            ),
            splits=splits,
        )  # fmt: skip
        size = abi.AttentionWorkspace()
        library.check("exl_attention_workspace_size", ctypes.byref(made), ctypes.byref(size))
        if splits > 1:
            tickets = library.put(np.zeros(size.ticket_bytes // 4, np.uint32))
            made.workspace = library.empty(size.workspace_bytes, np.uint8).pointer
            made.tickets = tickets.pointer
        self.outputs.append(out)
        return made

    def attend(self, rows: list[tuple[int, int]], splits: int = 1) -> Array:
        """(R, H, D) fp16; twice, to see that a launch leaves the tickets as it found them."""
        made = self.arguments(rows, splits)
        abi.launch(self.library, "exl_attention", made)
        first = self.library.get(self.outputs[-1])
        if splits > 1:
            abi.launch(self.library, "exl_attention", made)
            assert np.array_equal(first, self.library.get(self.outputs[-1]), equal_nan=True)
        return first

    def error(self, rows: list[tuple[int, int]], found: Array) -> float:
        """Squared and relative, over all rows."""
        expected = np.stack([self.expected[s][p] for s, p in rows])
        return float(((found - expected) ** 2).sum() / (expected**2).sum())
