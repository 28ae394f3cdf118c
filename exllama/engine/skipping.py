"""A model without some of its blocks, over the same weights and the same cache pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exllama.engine.runner import RunnableModel
from exllama.errors import UsageError
from exllama.layers.attention import Attention
from exllama.layers.module import Module
from exllama.ops import LayerCache


@dataclass
class SmallerModel:
    """What a Runner asks of a model."""

    modules: list[Module]
    device: str
    threads: int | None
    vocab_size: int
    hidden_size: int


def skip_blocks(
    model: RunnableModel, layers: Sequence[LayerCache], count: int
) -> tuple[SmallerModel, list[LayerCache]]:
    """The model without `count` blocks, and the caches of those that stay.

    The blocks left out lie evenly between the first and the last one, which the others depend on most. Raises
    UsageError when less than these two would stay.
    """
    begins = [index for index, module in enumerate(model.modules) if isinstance(module, Attention)]
    most = len(begins) - 2
    if not 1 <= count <= most:
        raise UsageError(f"skip:{count} was asked for, but of this model's {len(begins)} blocks 1 to {most} can go")
    skipped = {1 + (2 * i + 1) * most // (2 * count) for i in range(count)}
    ends = [*begins[1:], len(model.modules) - 1]  # the head is the last module
    gone = {index for block in skipped for index in range(begins[block], ends[block])}
    modules = [module for index, module in enumerate(model.modules) if index not in gone]
    smaller = SmallerModel(modules, model.device, model.threads, model.vocab_size, model.hidden_size)
    return smaller, [layer for block, layer in enumerate(layers) if block not in skipped]
