"""The forward pass in plain torch, module by module: `ops.Plan` whose operations run as soon as they are recorded.

So every architecture that the engine runs can be converted, and whoever listens sees the input of every linear. All
sequences have the same length and begin at position 0. torch's autograd goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from exllama import reference
from exllama.layers.attention import Attention
from exllama.layers.module import Module, Recording
from exllama.ops import Activation, Buffer, LayerCache, Norm, Projection, Rope, Weight

from .source import Matrix

# observe(names of the matrices that share this input, input (rows, in_features))
Observe = Callable[[Sequence[str], torch.Tensor], None]


@dataclass
class KeysAndValues:
    """What a layer cache is to this plan: the keys and values of the sequences at hand, (rows, heads, head_dim)."""

    num_kv_heads: int
    head_dim: int
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None
    nbytes: int = 0

    def copy_page(self, source: int, target: int) -> None:
        """See LayerCache; there are no pages."""
        raise NotImplementedError

    def read_page(self, page: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """See LayerCache; there are no pages."""
        raise NotImplementedError

    def write_page(self, page: int, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """See LayerCache; there are no pages."""
        raise NotImplementedError


class EagerPlan:
    """See ops.Plan. token_ids: (S, T) int64. observe: told of the input of every linear before it is used."""

    def __init__(self, token_ids: torch.Tensor, observe: Observe | None = None, want_logits: bool = True) -> None:
        self._ids, self._observe, self._want_logits = token_ids.flatten(), observe, want_logits
        self._sequences, self._length = token_ids.shape
        self._positions = torch.arange(self._length, device=token_ids.device).repeat(self._sequences)
        self.max_rows = len(self._ids)
        self.faults: dict[int, int] = {}
        self.values: list[torch.Tensor] = []
        self.result = torch.empty(0)

    def buffer(self, width: int) -> Buffer:
        """See Plan."""
        self.values.append(torch.empty(0))
        return Buffer(width, len(self.values) - 1)

    def embed(self, table: Weight, out: Buffer, multiplier: float = 1.0) -> None:
        """See Plan."""
        self.values[out.index] = reference.embedding(_matrix(table).values, self._ids, multiplier)

    def linear(
        self, x: Buffer, projections: Sequence[Projection], norm: Norm | None = None, precise: bool = False
    ) -> None:
        """See Plan."""
        value = self._read(x, norm, [p.weight for p in projections])
        for p in projections:
            self._project(p, reference.linear(value, _matrix(p.weight).values, p.bias))

    def gated_linear(
        self, x: Buffer, gate: Projection, up: Projection, activation: Activation, norm: Norm | None = None
    ) -> None:
        """See Plan."""
        value = self._read(x, norm, [gate.weight, up.weight])
        gated, linear = (reference.linear(value, _matrix(p.weight).values, p.bias) for p in (gate, up))
        self._project(gate, reference.activate(gated, activation) * linear)

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
        """See Plan."""
        store = cast(KeysAndValues, cache)
        self.values[q.index] = self._rotate(q, store.head_dim, rope, q_norm).flatten(1)
        store.k = self._rotate(k, store.head_dim, rope, k_norm)
        store.v = self._heads(v, store.head_dim)

    def attention(
        self,
        q: Buffer,
        out: Buffer,
        cache: LayerCache,
        scale: float,
        window: int | None = None,
        softcap: float = 0.0,
    ) -> None:
        """See Plan."""
        store = cast(KeysAndValues, cache)
        assert store.k is not None
        assert store.v is not None
        heads, positions, results = self._heads(q, store.head_dim), self._positions[: self._length], []
        for begin in range(0, len(heads), self._length):
            rows = slice(begin, begin + self._length)
            one = reference.attention(heads[rows], store.k[rows], store.v[rows], positions, scale, window, softcap)
            results.append(one)
        self.values[out.index] = torch.cat(results).flatten(1)

    def logits(self, x: Buffer, head: Weight, norm: Norm | None = None, softcap: float = 0.0) -> None:
        """See Plan."""
        value = self._read(x, norm, [head])
        if self._want_logits:
            self.result = reference.softcap(reference.linear(value, _matrix(head).values), softcap)

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
    ) -> torch.Tensor:
        """See Plan; there is nothing left to run."""
        raise NotImplementedError

    def _read(self, x: Buffer, norm: Norm | None, weights: Sequence[Weight]) -> torch.Tensor:
        value = self.values[x.index]
        value = value if norm is None else reference.rms_norm(value, norm.weight, norm.eps)
        if self._observe:
            self._observe([_matrix(weight).key for weight in weights], value)
        return value

    def _heads(self, x: Buffer, head_dim: int) -> torch.Tensor:
        value = self.values[x.index]
        return value.reshape(len(value), -1, head_dim)  # (rows, heads, head_dim)

    def _rotate(self, x: Buffer, head_dim: int, rope: Rope | None, norm: Norm | None) -> torch.Tensor:
        heads = self._heads(x, head_dim)
        heads = heads if norm is None else reference.rms_norm(heads, norm.weight, norm.eps)
        if rope is None:
            return heads
        return reference.rope(heads, self._positions, rope.inv_freq.to(heads.device), rope.scale)

    def _project(self, p: Projection, value: torch.Tensor) -> None:
        self.values[p.out.index] = self.values[p.out.index] + value if p.add else value


def run_module(
    module: Module, token_ids: torch.Tensor, hidden: torch.Tensor | None, width: int, observe: Observe | None = None
) -> torch.Tensor:
    """One module over whole sequences: token_ids (S, T) -> the residual stream (S, T, width) after it.

    hidden: (S, T, width) float32 before it, None for the embedding. SourceModel.load has filled the module.
    """
    plan = EagerPlan(token_ids, observe)
    _record(module, plan, hidden, width)
    return plan.values[0].reshape(*token_ids.shape, -1)


def run_head(
    module: Module, token_ids: torch.Tensor, hidden: torch.Tensor, observe: Observe | None = None, want: bool = True
) -> torch.Tensor:
    """The last module: (S * T, vocab) float32 logits, or nothing when only `observe` wants to know its input."""
    plan = EagerPlan(token_ids, observe, want)
    _record(module, plan, hidden, hidden.shape[-1])
    return plan.result


def _record(module: Module, plan: EagerPlan, hidden: torch.Tensor | None, width: int) -> None:
    shapes = [module.shape] if isinstance(module, Attention) else []
    with torch.device(plan._ids.device):  # so that masks are made where the numbers are
        recording = Recording(plan, width, [KeysAndValues(shape.num_kv_heads, shape.head_dim) for shape in shapes])
        if hidden is not None:
            plan.values[recording.hidden.index] = hidden.flatten(0, 1)
        module.record(recording)


def _matrix(weight: Weight) -> Matrix:
    assert isinstance(weight, Matrix), "the module was not loaded by SourceModel.load"
    return weight
