"""What the plans of CPUs and GPUs share: how operations are handed to a native plan that replays them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from exllama.errors import DeviceError, UsageError
from exllama.ops.protocol import Activation, Buffer, LayerCache, Norm, Projection, Rope, Weight

_ACTIVATIONS = {"silu": 1, "gelu_tanh": 2, "gelu": 3}


class NativePlan(ABC):
    """A Plan over a native one. A device says what it accepts and how it rounds; everything else is the same."""

    def __init__(self, native_plan: Any, max_rows: int) -> None:
        self.max_rows = max_rows
        self.faults: dict[int, int] = {}
        self._plan = native_plan
        self._rope_tables: dict[int, tuple[Rope, int]] = {}
        self._vocab = 0
        self._process = os.getpid()

    @abstractmethod
    def _packed(self, weight: Weight) -> Any:
        """The native weight. Raises DeviceError for one that lies elsewhere."""

    @abstractmethod
    def _pages(self, cache: LayerCache) -> Any:
        """The native pages. Raises DeviceError for those that lie elsewhere."""

    @abstractmethod
    def _typed(self) -> AbstractContextManager[None]:
        """Turns what the native plan refuses into errors of exllama."""

    @abstractmethod
    def _rounding(self, precise: bool) -> tuple[float, ...]:
        """Further arguments of matrix products."""

    def buffer(self, width: int) -> Buffer:
        return Buffer(width, self._plan.buffer(width))

    def embed(self, table: Weight, out: Buffer, multiplier: float = 1.0) -> None:
        with self._typed():
            self._plan.embed(self._packed(table), out.index, multiplier)

    def linear(
        self, x: Buffer, projections: Sequence[Projection], norm: Norm | None = None, precise: bool = False
    ) -> None:
        self._linear(x, projections, norm, 0, precise)

    def gated_linear(
        self, x: Buffer, gate: Projection, up: Projection, activation: Activation, norm: Norm | None = None
    ) -> None:
        self._linear(x, [gate, up], norm, _ACTIVATIONS[activation], False)

    def _linear(
        self, x: Buffer, projections: Sequence[Projection], norm: Norm | None, activation: int, precise: bool
    ) -> None:
        rows = [(self._packed(p.weight), p.out.index, _array(p.bias), p.add) for p in projections]
        try:
            with self._typed():
                self._plan.linear(x.index, rows, *_norm(norm), activation, *self._rounding(precise))
        except ValueError as error:
            raise UsageError(f"a stage of {len(rows)} matrices cannot be recorded: {error}") from error

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
        with self._typed():
            table = -1 if rope is None else self._rope_table(rope)
            pages = self._pages(cache)
            self._plan.rope_and_store(q.index, k.index, v.index, pages, table, *_norm(q_norm), *_norm(k_norm))

    def _rope_table(self, rope: Rope) -> int:
        """Cosines and sines are computed once a run for all layers that share them."""
        if id(rope) not in self._rope_tables:
            inv_freq = rope.inv_freq.to(torch.float32).contiguous().numpy()
            self._rope_tables[id(rope)] = (rope, self._plan.rope_table(inv_freq, rope.scale))
        return self._rope_tables[id(rope)][1]

    def attention(
        self, q: Buffer, out: Buffer, cache: LayerCache, scale: float, window: int | None = None, softcap: float = 0.0
    ) -> None:
        with self._typed():
            self._plan.attention(q.index, out.index, self._pages(cache), scale, window or 0, softcap)

    def logits(self, x: Buffer, head: Weight, norm: Norm | None = None, softcap: float = 0.0) -> None:
        self._vocab = head.out_features
        with self._typed():
            self._plan.logits(x.index, self._packed(head), *_norm(norm), softcap, *self._rounding(True))

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
    ) -> torch.Tensor:
        if os.getpid() != self._process:  # threads and GPU contexts do not survive a fork; waiting for them never ends
            raise DeviceError(
                f"the model was loaded by process {self._process}, and process {os.getpid()}, forked from it, cannot "
                'use it: load it after the fork, or start processes with multiprocessing.set_start_method("spawn")'
            )
        out = np.empty((len(logit_rows), self._vocab), np.float32)
        try:
            with self._typed():
                faults = self._plan.run(token_ids, positions, sequences, page_table, logit_rows, out)
        except ValueError as error:
            raise UsageError(f"a batch of {len(token_ids)} rows cannot run: {error}") from error
        self.faults = dict(faults) if faults else {}
        return torch.from_numpy(out)


def _array(vector: torch.Tensor | None) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    return None if vector is None else vector.to(torch.float32).contiguous().numpy()


def _norm(norm: Norm | None) -> tuple[np.ndarray[Any, np.dtype[np.float32]] | None, float]:
    return (None, 0.0) if norm is None else (_array(norm.weight), norm.eps)
