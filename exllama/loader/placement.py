"""What goes where: a pure function of sizes, free memory and wishes. Nothing is loaded, no driver is asked.

The order of a model is embedding, blocks, head. GPUs take the last blocks, in the order of their names; what is left at
the front runs on the CPU, and the head is the first to be left out. As many layers as possible go on GPUs, on as few
GPUs as hold them, filled by the same share of what each has free.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from exllama.devices import Device
from exllama.errors import UsageError
from exllama.ops import PAGE_SIZE

# The process itself, measured on Linux: 225 MiB with torch 2.13 imported, about 260 with a tokenizer of 49k tokens.
PROCESS_BYTES = 260 << 20
ALL_LAYERS = (-1, 99, 999)  # what users of other engines write for "all"
_STEPS = 1000  # in which the share of a GPU's memory is searched


@dataclass(frozen=True)
class KindSizes:
    """The bytes of a model's parts on one kind of device, CPU or GPU.

    blocks: weights of each decoder block. pages: K and V of one cache page of each. head: what it has beside a shared
    table. workspace: activations of one step; head_workspace: logits. partials: sums that matrix products keep, in the
    same memory as those of attention, split_page for every page of a sequence.
    """

    embedding: int
    blocks: tuple[int, ...]
    pages: tuple[int, ...]
    head: int
    workspace: int
    head_workspace: int
    partials: int = 0
    split_page: int = 0

    def activations(self, pages: int) -> int:
        """Workspace with sequences of up to so many pages."""
        return self.workspace + max(self.partials, pages * self.split_page)


@dataclass(frozen=True)
class ModelSizes:
    """What a model asks for, from metadata alone. tied: the head multiplies by the embedding's table, and lies with it.

    max_context: the longest sequence that the model was made for.
    """

    cpu: KindSizes
    gpu: KindSizes
    tied: bool
    max_context: int

    @property
    def layers(self) -> int:
        """Decoder blocks and the head."""
        return len(self.cpu.blocks) + 1


@dataclass(frozen=True)
class Wishes:
    """What a user asks of a plan.

    gpu_split: bytes of each GPU that model and cache may take, in order; None: what is free. gpu_layers: how many of
    the last layers go on GPUs, the head counted as one; None: as many as fit. reserve: bytes of each GPU to leave
    alone. spread: use all GPUs where fewer would do. cache_tokens: None for one sequence of full length.
    """

    gpu_split: tuple[int, ...] | None = None
    gpu_layers: int | None = None
    reserve: tuple[int, ...] = ()
    spread: bool = False
    cache_tokens: int | None = None


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
    """A plan; when it does not fit, `advice` says why and what would.

    embedding, head: their devices. blocks: the device of each. max_context: the most cache tokens with as many layers
    on GPUs; where the plan does not fit, the most that fit at all.
    """

    fits: bool
    embedding: str
    blocks: tuple[str, ...]
    head: str
    shares: list[DeviceShare]
    max_context: int
    advice: list[str] = field(default_factory=list)

    @property
    def total_layers(self) -> int:
        return len(self.blocks) + 1

    @property
    def gpu_layers(self) -> int:
        """Layers that are not on the CPU."""
        return sum(device != "cpu" for device in (*self.blocks, self.head))

    def to_json(self) -> dict[str, Any]:
        """The plan as `python -m exllama.devices plan --json` prints it."""
        return {
            "fits": self.fits,
            "layers": {"total": self.total_layers, "on_gpu": self.gpu_layers},
            "devices": [{**asdict(share), "total": share.total} for share in self.shares],
            "max_context": self.max_context,
            "advice": self.advice,
        }


def plan(sizes: ModelSizes, devices: Sequence[Device], wishes: Wishes | None = None) -> Placement:
    """Decides for every part of a model where it lies. devices: the CPU and the GPUs that may be used.

    Raises UsageError for wishes that no machine could fulfil; one that is too small gets a plan that does not fit.
    """
    planner = _Planner(sizes, devices, wishes or Wishes())
    pages = -(-(planner.wishes.cache_tokens or sizes.max_context) // PAGE_SIZE)
    layout = planner.layout(pages)
    shares = planner.shares(layout, pages)
    fits = all(share.total <= share.free for share in shares)
    most = planner.most_pages(layout.layers if fits else None)
    context = min(most * PAGE_SIZE, sizes.max_context)
    advice = _ways_out(shares, layout.layers, context, sizes) if not fits or 0 < layout.layers < sizes.layers else []
    return Placement(fits, layout.embedding, tuple(layout.blocks), layout.head, shares, context, advice)


@dataclass(frozen=True)
class _Layout:
    embedding: str
    blocks: list[str]
    head: str

    @property
    def layers(self) -> int:
        return sum(device != "cpu" for device in (*self.blocks, self.head))


class _Planner:
    """One model, one set of devices, one set of wishes; everything follows from the number of cache pages."""

    def __init__(self, sizes: ModelSizes, devices: Sequence[Device], wishes: Wishes) -> None:
        self.sizes, self.wishes = sizes, wishes
        self.cpu = next(device for device in devices if device.name == "cpu")
        self.gpus = [device for device in devices if device.name != "cpu"]
        self.kept = [device.overhead + reserve for device, reserve in zip(self.gpus, self._reserve(), strict=True)]
        self.rooms = [max(0, room - kept) for room, kept in zip(self._split(), self.kept, strict=True)]
        self.wanted = self._wanted_layers()
        self.work = 0  # activations of a GPU for the pages of the layout at hand
        self.head_bytes = sizes.gpu.head + sizes.gpu.head_workspace + (sizes.gpu.embedding if sizes.tied else 0)

    def layout(self, pages: int) -> _Layout:
        """The best one for so many pages; of layers that were wished and do not fit, the first GPU gets too many."""
        count, self.work = len(self.sizes.gpu.blocks), self.sizes.gpu.activations(pages)
        costs = self._costs(pages)
        if self.wanted > count:
            for group in self._groups():
                whole = [found for at in reversed(group) if (found := self._balanced(costs, group, at, 0)) is not None]
                if whole:
                    return self._named(*min(whole, key=lambda found: found[0])[1:], costs)
        group = list(range(len(self.gpus)))
        first = count - min(self.wanted, count)
        forced = self.wishes.gpu_layers is not None
        if forced and self.wanted > count:  # wished, and impossible: the last GPU has the head, the first too much
            begins = self._reach(costs, group, group[-1], _STEPS)
            return self._named([0, *begins[1:]], group[-1], costs)
        for group in self._groups():
            if (found := self._balanced(costs, group, None, first)) is not None:
                return self._named(found[1], None, costs)
        begins = self._reach(costs, group, None, _STEPS, first) if group else []
        if forced and begins:
            begins[0] = first
        elif begins and (found := self._balanced(costs, group, None, begins[0])) is not None:
            begins = found[1]
        return self._named(begins, None, costs)

    def shares(self, layout: _Layout, pages: int) -> list[DeviceShare]:
        """What every device that is used holds; the CPU's share is there always, for it runs the process."""
        names = [*(gpu.name for gpu in self.gpus if gpu.name in {*layout.blocks, layout.head}), "cpu"]
        return [self._share(name, layout, pages) for name in names]

    def most_pages(self, layers: int | None) -> int:
        """The most pages with which `layers` layers (None: any number) go on GPUs and the rest fits in memory."""
        low, high = 0, -(-self.sizes.max_context // PAGE_SIZE)
        while low < high:
            middle = (low + high + 1) // 2
            layout = self.layout(middle)
            enough = layers is None or layout.layers >= layers
            if enough and all(share.total <= share.free for share in self.shares(layout, middle)):
                low = middle
            else:
                high = middle - 1
        return low

    def _groups(self) -> list[list[int]]:
        """The GPUs to try: the largest one, the two largest, ...; all at once where that is wished."""
        count = len(self.gpus)
        if self.wishes.spread or self.wishes.gpu_split is not None:
            return [list(range(count))] if count else []
        largest = sorted(range(count), key=lambda g: (self._integrated(g), -self.rooms[g], g))
        return [sorted(largest[: size + 1]) for size in range(count)]

    def _integrated(self, index: int) -> bool:
        gpu = self.gpus[index].gpu
        return gpu is not None and gpu.integrated

    def _costs(self, pages: int) -> list[int]:
        """Bytes of all blocks before each, on GPUs."""
        gpu = self.sizes.gpu
        return [0, *accumulate(block + pages * page for block, page in zip(gpu.blocks, gpu.pages, strict=True))]

    def _balanced(
        self, costs: list[int], group: Sequence[int], head: int | None, first: int
    ) -> tuple[int, list[int], int | None] | None:
        """The smallest share of every GPU's room that holds blocks `first`.. (and the head); None if even all does not.

        Returns (share, begins, head).
        """
        if self._start(self._reach(costs, group, head, _STEPS, first), len(costs) - 1) > first:
            return None
        low, high = 0, _STEPS
        while low < high:
            middle = (low + high) // 2
            if self._start(self._reach(costs, group, head, middle, first), len(costs) - 1) <= first:
                high = middle
            else:
                low = middle + 1
        return high, self._reach(costs, group, head, high, first), head

    @staticmethod
    def _start(begins: list[int], count: int) -> int:
        return begins[0] if begins else count

    def _reach(self, costs: list[int], group: Sequence[int], head: int | None, share: int, first: int = 0) -> list[int]:
        """Fills GPUs from the last block backwards, none before `first`. Per GPU, where its blocks begin.

        A GPU whose room for the head is too small makes all fail: nothing is placed.
        """
        end, begins = len(costs) - 1, [len(costs) - 1] * len(self.gpus)
        for g in reversed(range(len(self.gpus))):
            room = self.rooms[g] * share // _STEPS - self.work
            if g == head:
                room -= self.head_bytes
                if room < 0:
                    return [len(costs) - 1] * len(self.gpus)
            if g in group and room > 0:
                end = max(first, bisect_left(costs, costs[end] - room, 0, end + 1))
            begins[g] = end
        return begins

    def _named(self, begins: list[int], head: int | None, costs: list[int]) -> _Layout:
        """Devices by name. An embedding goes before the first block if all else is on GPUs and there is room."""
        ends = [*begins[1:], len(costs) - 1] if begins else []
        blocks = ["cpu"] * (begins[0] if begins else len(costs) - 1)
        for gpu, begin, end in zip(self.gpus, begins, ends, strict=True):
            blocks += [gpu.name] * (end - begin)
        if head is None:
            return _Layout("cpu", blocks, "cpu")
        if self.sizes.tied:
            return _Layout(self.gpus[head].name, blocks, self.gpus[head].name)
        at = next((g for g, (b, e) in enumerate(zip(begins, ends, strict=True)) if e > b), head)
        used = costs[ends[at]] - costs[begins[at]] + self.work + (self.head_bytes if at == head else 0)
        roomy = not begins[0] and used + self.sizes.gpu.embedding <= self.rooms[at]
        return _Layout(self.gpus[at].name if roomy else "cpu", blocks, self.gpus[head].name)

    def _share(self, name: str, layout: _Layout, pages: int) -> DeviceShare:
        on_cpu = name == "cpu"
        sizes, device = (self.sizes.cpu, self.cpu) if on_cpu else (self.sizes.gpu, self._gpu(name))
        own = [index for index, at in enumerate(layout.blocks) if at == name]
        here = layout.embedding == name, layout.head == name
        return DeviceShare(
            device=name,
            weights=sum(sizes.blocks[i] for i in own) + here[0] * sizes.embedding + here[1] * sizes.head,
            cache=pages * sum(sizes.pages[i] for i in own),
            workspace=(bool(own) or any(here)) * sizes.activations(pages) + here[1] * sizes.head_workspace,
            overhead=PROCESS_BYTES if on_cpu else self.kept[self.gpus.index(device)],
            free=device.free if on_cpu else self._limit(device),
            capacity=device.total,
        )

    def _gpu(self, name: str) -> Device:
        return next(gpu for gpu in self.gpus if gpu.name == name)

    def _limit(self, device: Device) -> int:
        at = self.gpus.index(device)
        return min(device.free, self.rooms[at] + self.kept[at])

    def _reserve(self) -> list[int]:
        given = self.wishes.reserve
        if len(given) > len(self.gpus) or any(value < 0 for value in given):
            raise UsageError(f"reserve is {given}, expected bytes for each of {len(self.gpus)} GPUs or fewer")
        return [*given, *[0] * (len(self.gpus) - len(given))]

    def _split(self) -> list[int]:
        given = self.wishes.gpu_split
        if given is None:
            return [device.free for device in self.gpus]
        if len(given) > len(self.gpus):
            raise UsageError(
                f"Too many entries in gpu_split. {len(self.gpus)} GPU devices are available: {_names(self.gpus)}"
            )
        for device, size in zip(self.gpus, given, strict=False):
            if not 0 <= size <= device.total:
                asked, most = f"{size / 1e9:g} GB of {device.name}", f"{device.total / 1e9:.1f}"
                raise UsageError(f"gpu_split asks for {asked}, expected 0 to {most}, which is all it has")
        limits = [*given, *[0] * (len(self.gpus) - len(given))]
        return [min(limit, device.free) for limit, device in zip(limits, self.gpus, strict=True)]

    def _wanted_layers(self) -> int:
        wished = self.wishes.gpu_layers
        if wished is None:
            return self.sizes.layers if self.gpus else 0
        if wished < -1:
            raise UsageError(f"gpu_layers is {wished}, expected 0 to {self.sizes.layers}, or -1 for all")
        if wished and not self.gpus:
            raise UsageError(f"gpu_layers is {wished}, but there is no GPU: python -m exllama.devices says why")
        return self.sizes.layers if wished in ALL_LAYERS else min(wished, self.sizes.layers)


def split_bytes(gigabytes: Sequence[float]) -> tuple[int, ...]:
    """gpu_split in bytes, from GB of 10^9. Raises UsageError for what is no size."""
    for value in gigabytes:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise UsageError(f"gpu_split holds {value!r}, expected gigabytes from 0")
    return tuple(int(value * 10**9) for value in gigabytes)


def _names(devices: Sequence[Device]) -> str:
    return ", ".join(device.name for device in devices) or "none"


def _ways_out(shares: Sequence[DeviceShare], layers: int, context: int, sizes: ModelSizes) -> list[str]:
    """What is missing where, and the three cheapest things that help."""
    advice = []
    for share in shares:
        if share.total > share.free:
            missing = f"{share.total - share.free:,} bytes are missing: {share.total:,} are needed"
            reason = "Insufficient VRAM for model and cache: " if share.device != "cpu" else ""
            advice.append(f"{reason}{share.device}: {missing}, {share.free:,} of {share.capacity:,} are free")
    if not advice:
        advice.append(f"{sizes.layers - layers} of {sizes.layers} layers run on the CPU, which is slower")
    elif context >= PAGE_SIZE:
        advice.append(f"--cache-tokens {context} fits")
    if any(share.cache for share in shares):
        advice.append("a quantized cache is smaller: --cache q8 takes 53 % of fp16, --cache q4 28 %")
    return [*advice, "a file with fewer bits per weight, or a smaller model, needs less"]
