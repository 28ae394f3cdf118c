"""What a model would take, from its metadata: `python -m exllama.devices plan`. No tensor is read."""

from __future__ import annotations

import math

from exllama import architectures
from exllama.architectures.common.config import ConfigReader
from exllama.cache.storage import CacheLayer, cache_nbytes
from exllama.devices import discover
from exllama.formats.registry import find_composite, find_format
from exllama.formats.stored import StoredTensor
from exllama.loader.checkpoint import Checkpoint
from exllama.loader.placement import ModelSizes, Placement, plan_cpu

CHUNK = 2048  # rows of a prefill step, as the generator's chunk_size


def plan_model(checkpoint: Checkpoint, cache: str = "fp16", cache_tokens: int | None = None) -> Placement:
    """The plan for the machine as it is now. Raises what reading the configuration raises."""
    return plan_cpu(model_sizes(checkpoint, cache), discover().cpu, cache_tokens)


def model_sizes(checkpoint: Checkpoint, cache: str = "fp16") -> ModelSizes:
    """Sizes of an open checkpoint. Activations are float32 buffers of one prefill step."""
    reader = ConfigReader(checkpoint.path, checkpoint.config)
    config = architectures.find_architecture(reader).read_config(reader)
    layers = [CacheLayer(config.num_kv_heads, config.head_dim)] * config.num_layers
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    widths = 2 * config.hidden_size + attention + 2 * config.intermediate_size
    return ModelSizes(
        layers=config.num_layers + 1,
        weights=sum(loaded_bytes(checkpoint, tensor) for tensor in checkpoint.tensors.values()),
        page_bytes=cache_nbytes(layers, 1, cache),
        workspace=4 * widths * CHUNK,
        max_context=config.max_position,
    )


def loaded_bytes(checkpoint: Checkpoint, tensor: StoredTensor) -> int:
    """What a tensor takes once loaded: what the file has, unless its type is held as another one."""
    key, _, part = tensor.name.rpartition(".")
    composite = find_composite(checkpoint.tensors, key)
    if composite is not None and part in composite.parts:
        return tensor.nbytes
    form = find_format(tensor.type)
    if form.family == "GroupAffine" and len(tensor.shape) == 2:
        return tensor.nbytes
    held = form.held if len(tensor.shape) == 2 else "float32"
    return math.prod(tensor.shape) * {"float32": 4, "float16": 2, "bfloat16": 2}.get(held, 4)


def describe(placement: Placement) -> str:
    """The plan for a person."""
    lines = []
    for share in placement.shares:
        parts = f"weights {mib(share.weights)}, cache {mib(share.cache)}, workspace {mib(share.workspace)}"
        lines.append(f"{share.device}: {parts}, process {mib(share.overhead)}")
        lines.append(f"{share.device}: {mib(share.total)} of {mib(share.free)} free, {mib(share.capacity)} in all")
    lines.append(f"offloaded {placement.gpu_layers}/{placement.total_layers} layers to GPU")
    lines.append(f"it {'fits' if placement.fits else 'does not fit'}; the longest context that fits: "
                 f"{placement.max_context} tokens")  # fmt: skip
    return "\n".join([*lines, *placement.advice])


def mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
