"""What goes where: a pure function of sizes, free memory and wishes. Nothing is loaded, no driver is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from exllama.devices import Device
from exllama.ops import PAGE_SIZE

# The process itself, measured on Linux: 225 MiB with torch 2.13 imported, about 260 with a tokenizer of 49k tokens.
PROCESS_BYTES = 260 << 20


@dataclass(frozen=True)
class ModelSizes:
    """The bytes that a model asks for, from metadata alone.

    layers: decoder blocks and the head. page_bytes: K and V of one page in all layers. workspace: activations.
    max_context: the longest sequence that the model was made for.
    """

    layers: int
    weights: int
    page_bytes: int
    workspace: int
    max_context: int


@dataclass(frozen=True)
class DeviceShare:
    """One line of a plan, all in bytes. total = weights + cache + workspace + overhead."""

    device: str
    weights: int
    cache: int
    workspace: int
    overhead: int
    free: int
    capacity: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace + self.overhead


@dataclass(frozen=True)
class Placement:
    """A plan; when it does not fit, `advice` says why and what would. max_context: the most tokens that do fit."""

    fits: bool
    total_layers: int
    gpu_layers: int
    shares: list[DeviceShare]
    max_context: int
    advice: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The plan as `python -m exllama.devices plan --json` prints it."""
        return {
            "fits": self.fits,
            "layers": {"total": self.total_layers, "on_gpu": self.gpu_layers},
            "devices": [{**asdict(share), "total": share.total} for share in self.shares],
            "max_context": self.max_context,
            "advice": self.advice,
        }


def plan_cpu(sizes: ModelSizes, cpu: Device, cache_tokens: int | None = None) -> Placement:
    """Everything on the CPU, with a cache for `cache_tokens` (None: the model's own context)."""
    pages = -(-(cache_tokens or sizes.max_context) // PAGE_SIZE)
    share = DeviceShare(
        device=cpu.name,
        weights=sizes.weights,
        cache=pages * sizes.page_bytes,
        workspace=sizes.workspace,
        overhead=PROCESS_BYTES,
        free=cpu.free,
        capacity=cpu.total,
    )
    spare = max(0, cpu.free - (share.total - share.cache))
    room = spare // sizes.page_bytes * PAGE_SIZE
    fits = share.total <= cpu.free
    return Placement(
        fits=fits,
        total_layers=sizes.layers,
        gpu_layers=0,
        shares=[share],
        max_context=min(room, sizes.max_context),
        advice=[] if fits else _ways_out(share, room, spare),
    )


def _ways_out(share: DeviceShare, room: int, spare: int) -> list[str]:
    """What is missing, and the cheapest things that help."""
    missing = f"{share.device}: {share.total - share.free:,} bytes are missing: {share.total:,} are needed"
    advice = [f"{missing}, {share.free:,} of {share.capacity:,} are free"]
    if room >= PAGE_SIZE:
        advice.append(f"--cache-tokens {room} fits")
    if spare:
        advice.append("a quantized cache is smaller: --cache q8 takes 53 % of fp16, --cache q4 28 %")
    return [*advice, "a file with fewer bits per weight, or a smaller model, needs less"]
