"""A model in memory: its configuration, its modules with their weights, its tokenizer."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch

from exllama import architectures
from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.decoder import DecoderConfig
from exllama.cache.storage import CacheLayer, KVCache
from exllama.engine.batch import Batch, Ints
from exllama.engine.fingerprint import fingerprint
from exllama.engine.runner import Runner
from exllama.engine.weights import CheckpointWeights, has_own_head
from exllama.errors import ContextError, UsageError, cache_fault
from exllama.layers.attention import Attention
from exllama.layers.module import Module
from exllama.loader.checkpoint import Checkpoint
from exllama.loader.progress import Progress
from exllama.loader.sources import open_checkpoint
from exllama.ops import PAGE_SIZE
from exllama.tokenizer.tokenizer import Tokenizer

_LOGITS_ROWS = 256  # rows that Model.logits runs at a time; results do not depend on it
_log = logging.getLogger(__name__)


class Model:
    """Made by `from_pretrained`. config: the architecture's typed configuration; modules: the flat list."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: DecoderConfig,
        modules: list[Module],
        device: str,
        context_length: int,
        threads: int | None,
    ) -> None:
        self.config, self.modules, self.device, self.threads = config, modules, device, threads
        self.context_length = context_length
        self._checkpoint = checkpoint
        self._reading: tuple[object, ...] = (device, context_length)
        self._tokenizer: Tokenizer | None = None
        self._logits_runner: Runner | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str = "cpu",
        expand: Literal["float32"] | None = None,
        threads: int | None = None,
        context: int | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Loads a model.

        source: a folder, a .gguf file, `hf:org/name[@revision]` or `default`. expand: "float32" replaces every weight
        by its exact dequantized values, for evaluation. threads: None for the default of ops.default_threads.
        context: the longest sequence that will be run; None for what the configuration says. Two kinds of rotary
        embedding depend on it (layers/rope.py). progress: told of bytes fetched and loaded.

        Raises SourceError, FormatError, UnsupportedModelError, DeviceError or UsageError.
        """
        checkpoint = open_checkpoint(source, progress)
        try:
            reader = ConfigReader(checkpoint.path, checkpoint.config)
            architecture = architectures.find_architecture(reader)
            config = architecture.read_config(reader)
            if config.tied_head and has_own_head(checkpoint):
                _log.warning("%s: tie_word_embeddings is set, but lm_head differs: using lm_head", checkpoint.path)
                config = replace(config, tied_head=False)
            context_length = _context_length(config, context)
            modules = architecture.build(config, context_length)
            weights = CheckpointWeights(checkpoint, device, expand, progress)
            weights.expect(name for module in modules for name in module.tensor_names())
            for module in modules:
                module.load(weights)
        except BaseException:
            checkpoint.close()
            raise
        made = cls(checkpoint, config, modules, device, context_length, threads)
        made._reading += (expand,)
        return made

    @property
    def vocab_size(self) -> int:
        """Width of the logits, which may exceed the tokenizer's vocabulary."""
        return self.config.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.config.hidden_size

    @property
    def nbytes(self) -> int:
        """Bytes of all loaded tensors."""
        return sum(module.nbytes for module in self.modules)

    @property
    def tokenizer(self) -> Tokenizer:
        """Read from the checkpoint when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = self._checkpoint.load_tokenizer()
        return self._tokenizer

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hex digits that say which weights these are and how they are read (engine/fingerprint.py)."""
        return fingerprint(self._checkpoint, *self._reading)

    @property
    def cache_layers(self) -> list[CacheLayer]:
        """What a KVCache of this model holds, layer by layer."""
        shapes = [module.shape for module in self.modules if isinstance(module, Attention)]
        return [CacheLayer(shape.num_kv_heads, shape.head_dim, self.device) for shape in shapes]

    def logits(self, token_ids: torch.Tensor, cache: str = "fp16") -> torch.Tensor:
        """Logits after every token of one sequence: (T,) int64 -> (T, vocab) float32.

        Uses a cache of its own, of the given kind. Raises ContextError when the tokens do not fit, UsageError when
        they are none or not of this vocabulary, NumericsError when a key or value is no number that the cache holds.
        """
        ids = token_ids.to(torch.int64).numpy()
        if ids.ndim != 1 or len(ids) == 0:
            raise UsageError(f"token_ids has the shape {tuple(ids.shape)}, expected (T,) with T > 0")
        if len(ids) > self.context_length:
            raise ContextError(len(ids), self.context_length)
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise UsageError(f"a token id is {ids.min()} or {ids.max()}, expected 0 to {self.vocab_size - 1}")
        runner = self._runner_for(len(ids), cache)
        logits = torch.empty(len(ids), self.vocab_size)
        for batch in _chunks(ids.astype(np.int32)):
            begin = int(batch.positions[0])
            logits[begin : begin + len(batch.positions)] = runner.forward(batch)
            for row, layer in runner.faults.items():
                raise cache_fault(begin + row, layer)
        return logits

    def close(self) -> None:
        """Gives memory and files back; the model is of no use afterwards. Harmless when called twice."""
        self._checkpoint.close()
        self._logits_runner = None
        self.modules = []

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _runner_for(self, tokens: int, cache: str) -> Runner:
        """The runner of the last call if it fits."""
        runner, pages = self._logits_runner, -(-tokens // PAGE_SIZE)
        if runner is None or runner.cache.num_pages < pages or runner.cache.kind != cache:
            self._logits_runner = runner = None  # frees the old one first
            runner = Runner(self, KVCache(self.cache_layers, pages, cache), _LOGITS_ROWS, max_sequences=1)
            self._logits_runner = runner
        return runner


def _context_length(config: DecoderConfig, context: int | None) -> int:
    if context is None:
        return config.max_position
    if context < 1:
        raise UsageError(f"context is {context}, expected at least 1")
    if context > config.max_position and config.rope.kind != "dynamic":
        _log.warning("context is %d, but this model was made for %d tokens", context, config.max_position)
    return context


def _chunks(token_ids: Ints) -> Iterator[Batch]:
    """One sequence in pages 0, 1, 2, ..., as batches that want all logits."""
    pages = np.arange(-(-len(token_ids) // PAGE_SIZE), dtype=np.int32)[None, :]
    for begin in range(0, len(token_ids), _LOGITS_ROWS):
        ids = token_ids[begin : begin + _LOGITS_ROWS]
        rows = np.arange(len(ids), dtype=np.int32)
        yield Batch(ids, rows + np.int32(begin), np.zeros_like(rows), pages, rows)
