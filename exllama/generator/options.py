"""Arguments of Generator.from_pretrained: what is accepted, and what they come to for a model at hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from exllama import ops, settings
from exllama.cache.disk import DiskTier
from exllama.cache.spill import MemoryTier, Spill, Tier
from exllama.cache.storage import CacheLayer, KVCache, cache_nbytes
from exllama.devices.cpu import memory
from exllama.engine.fingerprint import pages_header
from exllama.engine.model import Model
from exllama.errors import UsageError
from exllama.loader.progress import Progress
from exllama.ops import PAGE_SIZE

_SPILL_BYTES = 8 << 30
_MEMORY_SHARE = 4  # a cache of unstated size takes at most 1 / _MEMORY_SHARE of the memory that is free
_log = logging.getLogger(__name__)


class LoadOptions(TypedDict, total=False):
    """Arguments of from_pretrained that few callers need.

    context: the longest sequence, None for what the model's configuration says. max_queue: jobs that may wait.
    acceptance: "drawn": a draft stays if it is the token that is drawn anyway, so drafts change nothing; "rejection":
    models that guess get more accepted at the same distribution, but a seed repeats only with the same drafts.
    exact: results do not depend on the batch (DESIGN section 7); the kernels of CPUs always keep that, so False changes
    nothing there. expand: "float32" replaces weights by their exact values. progress: called while loading.

    Pages that the cache forgets go to the memory of the host (cache_host_bytes of it, of use where the cache is on an
    accelerator) and to the folder cache_spill (at most cache_spill_bytes, default 8 GiB), where the next process
    finds them.
    """

    cache_host_bytes: int | None
    cache_spill: str | Path | None
    cache_spill_bytes: int | None
    context: int | None
    max_queue: int
    acceptance: Literal["drawn", "rejection"]
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


def follows_rejection(acceptance: object) -> bool:
    """Whether drafts are accepted by the rule of rejection. Raises UsageError for a word that means nothing."""
    if acceptance not in ("drawn", "rejection"):
        raise UsageError(f"acceptance is {acceptance!r}, expected drawn or rejection")
    return acceptance == "rejection"


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


def make_spill(model: Model, cache: KVCache, more: LoadOptions) -> Spill | None:
    """What becomes of pages that the cache forgets; None when nothing does. Raises UsageError and SourceError."""
    folder, host_bytes, poison = more.get("cache_spill"), more.get("cache_host_bytes"), settings.debug_pages()
    if folder is None and more.get("cache_spill_bytes") is not None:
        raise UsageError("cache_spill_bytes limits the folder cache_spill: name one")
    tier: Tier | None = None
    if folder is not None:
        max_bytes = check_count("cache_spill_bytes", more.get("cache_spill_bytes") or _SPILL_BYTES, 1 << 60)
        tier = DiskTier(Path(folder).expanduser(), max_bytes, pages_header(model, cache), cache.page_nbytes)
    if host_bytes is not None:
        tier = MemoryTier(check_count("cache_host_bytes", host_bytes, 1 << 60), tier)
    if tier is None and not poison:
        return None
    return Spill(cache, tier, poison)
