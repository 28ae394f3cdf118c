"""What a model would take of this machine, or of another one, without loading it: `python -m exllama.devices plan`."""

from __future__ import annotations

import argparse
import re

from exllama.cli.flags import gigabytes
from exllama.devices import Device, Discovery, Gpu, discover
from exllama.devices.discovery import find
from exllama.devices.sources import emulated
from exllama.errors import UsageError
from exllama.loader.checkpoint import Checkpoint
from exllama.loader.placement import Placement, Wishes, plan, split_bytes
from exllama.loader.sizing import model_sizes
from exllama.ops import is_gpu
from exllama.settings import emu_devices

LOW_ROWS, ROWS = 256, 2048  # rows of a prefill step with and without --low-vram, as the generator's chunk_size
_PART = re.compile(r"(?:(?P<cpu>cpu:)|(?P<count>\d{1,2})x)?(?P<size>\d{1,6}(?:\.\d{1,3})?)(?P<unit>MiB|GiB)")


def plan_for(checkpoint: Checkpoint, args: argparse.Namespace) -> Placement:
    """The plan that the flags ask for. Raises UsageError and what reading the configuration raises."""
    devices = choose_devices(args.machine, args.device, wants_gpus(args))
    sizes = model_sizes(checkpoint, args.cache, LOW_ROWS if args.low_vram else ROWS)
    split = None if args.gpu_split in (None, "auto") else split_bytes(gigabytes(args.gpu_split))
    reserve = split_bytes(gigabytes(args.reserve)) if args.reserve else ()
    return plan(sizes, devices, Wishes(split, args.gpu_layers, reserve, args.spread, args.cache_tokens))


def wants_gpus(args: argparse.Namespace) -> bool:
    """Whether flags speak of GPUs, so that emulated ones count too."""
    return args.gpu_split is not None or bool(args.gpu_layers)


def choose_devices(machine: str | None, device: str, with_emulated: bool = False) -> list[Device]:
    """The devices that a plan may use. device: auto, cpu, or one GPU. Raises UsageError."""
    found = Discovery(parse_machine(machine)) if machine else discover()
    if device == "cpu":
        return [found.cpu]
    if is_gpu(device):
        return [_named(found, device), found.cpu]
    if device != "auto":
        raise UsageError(f"device is {device!r}, expected auto, cpu, or a GPU as in cuda:0")
    return [at for at in found.devices if with_emulated or not at.name.startswith("emu")]


def _named(found: Discovery, device: str) -> Device:
    """An emulated GPU is there as soon as it is named."""
    if device.startswith("emu") and not any(gpu.name.startswith("emu") for gpu in found.gpus):
        gpus = [
            Device(f"emu:{gpu.index}", gpu.name, gpu.total or 0, gpu.free or 0, gpu=gpu)
            for gpu in emulated(emu_devices())
        ]
        found = Discovery([*gpus, found.cpu])
    return find(found, device)


def parse_machine(text: str) -> list[Device]:
    """ "2x24GiB,cpu:64GiB": GPUs as cuda:0, cuda:1, and the memory of the host (64 GiB where it is not given)."""
    gpus: list[int] = []
    host = 64 << 30
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise UsageError(f"--machine is {text!r}, expected free memory as in 24GiB or 2x24GiB,80GiB,cpu:64GiB")
        size = int(float(found["size"]) * (1 << (30 if found["unit"] == "GiB" else 20)))
        if found["cpu"]:
            host = size
        else:
            gpus += [size] * int(found["count"] or 1)
    named = [Device(f"cuda:{i}", "a GPU", size, size, gpu=Gpu("nvidia", i)) for i, size in enumerate(gpus)]
    return [*named, Device("cpu", "a CPU", host, host, cores=1, logical_cores=1)]


def describe(placement: Placement) -> str:
    """The plan for a person: a line a device, then what it comes to."""
    lines = [
        f"{'':8}{'weights':>10}{'cache':>10}{'workspace':>11}{'overhead':>10}{'in all':>10}{'free':>10}  MiB  blocks"
    ]
    for share in placement.shares:
        sizes = (share.weights, share.cache, share.workspace, share.overhead, share.total, share.free)
        cells = "".join(f"{mib(size):>{width}}" for size, width in zip(sizes, (10, 10, 11, 10, 10, 10), strict=True))
        lines.append(f"{share.device:8}{cells}       {_layers_of(share.device, placement)}")
    lines.append(f"offloaded {placement.gpu_layers}/{placement.total_layers} layers to GPU")
    verdict = "fits" if placement.fits else "does not fit"
    lines.append(f"it {verdict}; the longest context that fits: {placement.max_context} tokens")
    return "\n".join([*lines, *placement.advice])


def _layers_of(device: str, placement: Placement) -> str:
    """ "embedding, 0-11, head"."""
    own = [index for index, at in enumerate(placement.blocks) if at == device]
    parts = ["embedding"] if placement.embedding == device else []
    parts += [f"{own[0]}-{own[-1]}"] if own else []
    return ", ".join([*parts, *(["head"] if placement.head == device else [])]) or "-"


def mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f}"
