"""Which bits per weight, cache type and context suit a machine: `python -m exllama.devices recommend`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from exllama.cache.storage import CacheLayer, cache_nbytes
from exllama.cli.flags import gigabytes
from exllama.cli.plan import choose_devices
from exllama.devices import Device
from exllama.errors import UsageError
from exllama.loader.placement import KindSizes, ModelSizes, Placement, Wishes, plan
from exllama.loader.progress import Progress
from exllama.loader.sizing import model_sizes
from exllama.loader.sources import open_checkpoint

BITS = (16.0, 8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5)
CACHES = ("fp16", "q8", "q4")
MIN_CONTEXT = 4096
_OVERHEAD_BITS = 0.5  # scales of groups, and parts that stay at more bits: 4.5 bits a weight for a 4-bit file
# Widths and depths that models of a size have had, per 10^9 weights: (blocks, hidden size, key and value features).
_SHAPES = {1: (16, 2048, 512), 4: (36, 2560, 1024), 9: (32, 4096, 1024), 20: (48, 5120, 1024), 40: (64, 5120, 1024),
           80: (80, 8192, 1024), 1000: (126, 16384, 1024)}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One way to run a model. tokens_per_second: at most, from bytes read per token; None without bandwidths."""

    bits: float
    cache: str
    context: int
    gpu_layers: int
    total_layers: int
    bytes: int
    tokens_per_second: float | None


def recommend(args: argparse.Namespace, progress: Progress) -> list[Choice]:
    """The best choice for each number of bits that fits, most bits first. Raises UsageError."""
    devices = choose_devices(args.machine, "auto")
    speeds = bandwidths(args.bandwidth, devices)
    if args.parameters:
        by_cache = {cache: sizes_of(parameters(args.parameters), cache) for cache in CACHES}
        weights = parameters(args.parameters)
    else:
        with open_checkpoint(args.model, progress) as checkpoint:
            by_cache = {cache: model_sizes(checkpoint, cache) for cache in CACHES}
            matrices = [tensor.shape for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2]
        weights = sum(rows * columns for rows, columns in matrices)
    found = (best(by_cache, weights, bits, devices, speeds) for bits in BITS)
    return [choice for choice in found if choice is not None]


def best(
    by_cache: dict[str, ModelSizes], weights: int, bits: float, devices: Sequence[Device], speeds: dict[str, float]
) -> Choice | None:
    """The cache with the fewest losses that leaves room for MIN_CONTEXT with as many layers on GPUs as any has."""
    choices = []
    for cache, sizes in by_cache.items():
        scaled = with_bits(sizes, weights, bits)
        tokens = min(MIN_CONTEXT, sizes.max_context)
        placement = plan(scaled, devices, Wishes(cache_tokens=tokens))
        if placement.fits and placement.max_context >= tokens:
            size = sum(share.weights + share.cache for share in placement.shares)
            speed = tokens_per_second(placement, speeds)
            layers = placement.gpu_layers, placement.total_layers
            choices.append(Choice(bits, cache, placement.max_context, *layers, size, speed))
    return max(choices, key=lambda choice: choice.gpu_layers, default=None)


def with_bits(sizes: ModelSizes, weights: int, bits: float) -> ModelSizes:
    """The same model with other bits per weight."""
    now = sum(sizes.cpu.blocks) + sizes.cpu.embedding + sizes.cpu.head
    wanted = weights * (bits if bits == 16 else bits + _OVERHEAD_BITS) / 8
    factor = wanted / now

    def scaled(kind: KindSizes) -> KindSizes:
        blocks = tuple(int(block * factor) for block in kind.blocks)
        return replace(kind, embedding=int(kind.embedding * factor), blocks=blocks, head=int(kind.head * factor))

    return replace(sizes, cpu=scaled(sizes.cpu), gpu=scaled(sizes.cpu))


def sizes_of(weights: int, cache: str) -> ModelSizes:
    """A model of the usual shape for its number of weights, at 16 bits each."""
    layers, hidden, kv = next(shape for most, shape in _SHAPES.items() if weights <= most * 10**9)
    page = cache_nbytes([CacheLayer(kv // 128, 128)], 1, cache)
    vocabulary = min(128_000 * hidden, weights // 8) * 2
    block = (weights * 2 - 2 * vocabulary) // layers
    workspace = 2048 * hidden * 2 * 12
    cpu = KindSizes(vocabulary, (block,) * layers, (page,) * layers, vocabulary, workspace, 16 * 128_000 * 4)
    partials = 2048 * 7 * hidden * 4  # of a gate and an up matrix 3.5 times as wide
    return ModelSizes(cpu, replace(cpu, partials=partials), False, 131_072)


def parameters(text: str) -> int:
    """ "8B", "0.5B", "700M" -> a number of weights."""
    found = re.fullmatch(r"(\d{1,4}(?:\.\d{1,3})?)\s*([MB])", text.strip(), re.I)
    count = round(float(found[1]) * {"M": 10**6, "B": 10**9}[found[2].upper()]) if found else 0
    if not 10**7 <= count <= 10**12:
        raise UsageError(f"--parameters is {text!r}, expected a number of weights as in 8B, 0.5B or 700M")
    return count


def bandwidths(text: str | None, devices: Sequence[Device]) -> dict[str, float]:
    """Bytes a second by device, as the user knows them; empty where nothing was said."""
    if text is None:
        return {}
    values = gigabytes(text)
    if len(values) != len(devices) or min(values) <= 0:
        names = ", ".join(device.name for device in devices)
        raise UsageError(f"--bandwidth has {len(values)} numbers, expected one above 0 for each of {names}")
    return {device.name: value * 1e9 for device, value in zip(devices, values, strict=True)}


def tokens_per_second(placement: Placement, speeds: dict[str, float]) -> float | None:
    """The roofline of one sequence with an empty cache: a token reads every weight, one device after the other."""
    if not speeds:
        return None
    return 1 / sum(share.weights / speeds[share.device] for share in placement.shares)


def to_json(choices: Sequence[Choice]) -> dict[str, Any]:
    return {"choices": [asdict(choice) for choice in choices]}


def describe(choices: Sequence[Choice]) -> str:
    """The choices for a person, best quality first."""
    if not choices:
        return f"nothing fits, not even {BITS[-1]} bits per weight with {MIN_CONTEXT} tokens: take a smaller model"
    lines = ["bits per weight   cache   longest context   layers on GPU   weights and cache   tokens/s at most"]
    for choice in choices:
        speed = "-" if choice.tokens_per_second is None else f"{choice.tokens_per_second:.1f}"
        layers, size = f"{choice.gpu_layers}/{choice.total_layers}", f"{choice.bytes / (1 << 30):.2f} GiB"
        lines.append(f"{choice.bits:>15g}{choice.cache:>8}{choice.context:>18}{layers:>16}{size:>20}{speed:>19}")
    full = [choice for choice in choices if choice.gpu_layers == choice.total_layers]
    advised = (full or list(choices))[0]
    where = "all on GPUs" if full else "the most bits that fit"
    return "\n".join([*lines, f"take {advised.bits:g} bits per weight and --cache {advised.cache}: {where}"])
