"""Arguments of Generator.from_pretrained: what is accepted, and what they come to for a model at hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from exllama import ops
from exllama.cache.storage import CacheLayer, cache_nbytes
from exllama.devices.cpu import memory
from exllama.errors import UsageError
from exllama.loader.progress import Progress
from exllama.ops import PAGE_SIZE

_MEMORY_SHARE = 4  # a cache of unstated size takes at most 1 / _MEMORY_SHARE of the memory that is free
_log = logging.getLogger(__name__)


class LoadOptions(TypedDict, total=False):
    """Arguments of from_pretrained that few callers need.

    context: the longest sequence, None for what the model's configuration says. max_queue: jobs that may wait.
    exact: results do not depend on the batch (DESIGN section 7); the kernels of CPUs always keep that, so False changes
    nothing there. expand: "float32" replaces weights by their exact values. progress: called while loading.
    """

    context: int | None
    max_queue: int
    exact: bool
    expand: Literal["float32"] | None
    progress: Progress | None


def check_load_options(options: dict[str, Any]) -> None:
    """Raises UsageError for an argument that from_pretrained does not have."""
    known = LoadOptions.__optional_keys__
    for name in options:
        if name not in known:
            raise UsageError(f"from_pretrained has no argument {name!r}; further ones are {', '.join(sorted(known))}")


def choose_device(device: str, gpu_split: Sequence[float] | str | None, gpu_layers: int | None) -> str:
    """The device that a model is loaded on. Raises UsageError for wishes that this version cannot fulfil."""
    chosen = "cpu" if device == "auto" else device
    if chosen not in ("cpu", "reference") and not ops.is_gpu(chosen):
        raise UsageError(f"device is {device!r}, expected auto, cpu, reference, or a GPU as in cuda:0, hip:0, emu:0")
    if gpu_split is not None:
        raise UsageError(f"gpu_split is {gpu_split!r}, but a model is loaded on one device, {chosen!r}: leave it out")
    if gpu_layers:
        raise UsageError(f"gpu_layers is {gpu_layers!r}, but a model is loaded on one device, {chosen!r}: leave it out")
    return chosen


def check_count(name: str, value: object, highest: int = 1 << 40) -> int:
    """value if it is a whole number from 1 to highest, else UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
        raise UsageError(f"{name} is {value!r}, expected a whole number from 1 to {highest}")
    return value


def cache_pages(layers: Sequence[CacheLayer], cache: str, cache_tokens: int | None, context_length: int) -> int:
    """Pages of the cache: for cache_tokens, else for one sequence of full length if a share of free memory holds it."""
    if cache_tokens is not None:
        return -(-check_count("cache_tokens", cache_tokens) // PAGE_SIZE)
    wanted = -(-context_length // PAGE_SIZE)
    device = layers[0].device if layers else "cpu"
    free = ops.gpu_free_bytes(device) if ops.is_gpu(device) else memory()[1]
    affordable = free // _MEMORY_SHARE // cache_nbytes(layers, 1, cache) if free else wanted
    pages = max(1, min(wanted, affordable))
    if pages < wanted:
        _log.warning(
            "the cache holds %d of the model's %d tokens of context, a quarter of the free memory (%d MiB): "
            "set cache_tokens, or cache to q8 or q4, for more",
            pages * PAGE_SIZE, context_length, free >> 20,
        )  # fmt: skip
    return pages
