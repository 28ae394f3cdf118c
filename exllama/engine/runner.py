"""Runs batches: the forward pass of a model, recorded once over static buffers and then replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import torch

from exllama import ops
from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.errors import UsageError
from exllama.layers.attention import Attention
from exllama.layers.module import Module, Recording
from exllama.ops import LayerCache

_NONE: Mapping[int, str] = MappingProxyType({})


class RunnableModel(Protocol):
    """What is used of engine.model.Model."""

    modules: list[Module]
    device: str
    threads: int | None

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...


class Runner:
    """A model over one cache, for batches of up to max_rows tokens of up to max_sequences sequences."""

    def __init__(
        self,
        model: RunnableModel,
        cache: KVCache,
        max_rows: int,
        max_sequences: int,
        layers: Sequence[LayerCache] | None = None,
    ) -> None:
        """layers: those that the model's attention layers use, None for all of the cache."""
        if max_rows < 1 or max_sequences < 1:
            raise UsageError(f"max_rows is {max_rows} and max_sequences {max_sequences}, expected at least 1")
        self.cache, self.max_rows, self.max_sequences = cache, max_rows, max_sequences
        self._plan = ops.plan(model.device, max_rows, model.threads)
        self._layers = [module.key for module in model.modules if isinstance(module, Attention)]
        recording = Recording(self._plan, model.hidden_size, cache.layers if layers is None else layers)
        for module in model.modules:
            module.record(recording)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (len(batch.logit_rows), vocab) float32, valid until the next call. Stores K and V of all rows.

        When `faults` names a row afterwards, the rows of its sequence have no meaning.
        """
        return self._plan.run(batch.token_ids, batch.positions, batch.sequences, batch.page_table, batch.logit_rows)

    @property
    def faults(self) -> Mapping[int, str]:
        """Rows of the last batch whose key or value is no number that the cache can hold, and the first such layer.

        Those of the first layers come first: in a later one a row may suffer from another one of its sequence.
        """
        found = self._plan.faults
        if not found:
            return _NONE
        return {row: self._layers[found[row]] for row in sorted(found, key=lambda row: (found[row], row))}
