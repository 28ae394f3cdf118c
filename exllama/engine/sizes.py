"""What the linears of a checkpoint take, whatever format each of them has; nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from exllama import architectures, formats
from exllama.architectures.common.config import ConfigReader
from exllama.engine.weights import has_own_head
from exllama.layers.embedding import Embedding
from exllama.layers.head import Head
from exllama.layers.linear import Linear
from exllama.layers.module import Module
from exllama.loader.checkpoint import Checkpoint


@dataclass(frozen=True)
class LinearSize:
    """shape: (out_features, in_features). nbytes: of all tensors that store the matrix, the bias apart."""

    shape: tuple[int, int]
    nbytes: int

    @property
    def bits(self) -> float:
        """Stored bits per weight."""
        return 8 * self.nbytes / math.prod(self.shape)


def linears(modules: Iterable[Module]) -> dict[str, Linear]:
    """Every linear of a flat list by its key, in order; a head that shares the embedding's table has that key."""
    found: dict[str, Linear] = {}
    for module in modules:
        parts = [] if isinstance(module, Embedding) else list(vars(module).values())
        found |= {part.key: part for part in parts if isinstance(part, Linear)}
        if isinstance(module, Head):
            found[module.weights.key] = module.weights
    return found


def linear_sizes(checkpoint: Checkpoint) -> dict[str, LinearSize]:
    """The size of every linear, head included. Raises what finding the architecture does."""
    reader = ConfigReader(checkpoint.path, checkpoint.config)
    architecture = architectures.find_architecture(reader)
    config = architecture.read_config(reader)
    made = {}
    for key, part in linears(architecture.build(config, config.max_position)).items():
        stored = "lm_head" if key == "model.embed_tokens" and has_own_head(checkpoint) else key
        names = [name for name in formats.stored_names(checkpoint.tensors, stored) if name in checkpoint.tensors]
        nbytes = sum(checkpoint.tensors[name].nbytes for name in names)
        made[key] = LinearSize((part.out_features, part.in_features), nbytes)
    return made


def mean_bits(sizes: dict[str, LinearSize]) -> float:
    """Stored bits per weight over all linears, head included."""
    return 8 * sum(size.nbytes for size in sizes.values()) / max(1, sum(math.prod(s.shape) for s in sizes.values()))
