"""Which devices there are, and why others are not used. Never initialises a driver, never raises.

Two phases: `discover` lists what tools and files tell; `validated` of devices/trial.py lets every GPU compute a little
in a process of its own. Both have a time limit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from exllama import settings
from exllama.devices.cpu import ROOT, discover_cpu
from exllama.devices.device import CONTEXT_BYTES, Device, Gpu
from exllama.devices.sources import Answer, Clock, ask_amd, ask_nvidia, emulated, on_pci_bus
from exllama.devices.visible import ORDER, overridden, select_amd, select_nvidia
from exllama.errors import UsageError

NO_GPU = "No GPU detected, running on CPU"
_BACKENDS = {"nvidia": "cuda", "amd": "hip", "emulated": "emu"}
_OLDEST_SM, _AMD_FAMILIES = 75, ("gfx9", "gfx10", "gfx11", "gfx12")


@dataclass(frozen=True)
class Discovery:
    """Devices in the order in which they would be filled, the CPU last, and what a user should know about the rest.

    dropped: GPUs that are there and not used, by name or UUID, with the reason.
    """

    devices: list[Device]
    notes: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def cpu(self) -> Device:
        return next(device for device in self.devices if device.name == "cpu")

    @property
    def gpus(self) -> list[Device]:
        return [device for device in self.devices if device.gpu is not None]


def time_limit() -> float:
    """Seconds for one phase: EXLLAMA_PROBE_TIMEOUT, else 30, 90 on Windows, where virus scanners read every DLL."""
    return settings.probe_seconds() or (90.0 if sys.platform == "win32" else 30.0)


def discover(root: Path = ROOT) -> Discovery:
    """Looks at the machine now; free memory is a snapshot. root stands for `/` in tests. Raises UsageError."""
    variables, clock = settings.visible_devices(), Clock(time_limit())
    answers = {"nvidia": ask_nvidia(root, clock), "amd": ask_amd(root, clock)}
    notes = [f"{vendor}: {note}" for vendor, answer in answers.items() for note in _missing(root, vendor, answer)]
    nvidia, amd = select_nvidia(answers["nvidia"].gpus, variables), select_amd(answers["amd"].gpus, variables)
    notes += [*nvidia.notes, *amd.notes, *(overridden(variables) if nvidia.gpus or amd.gpus or notes else [])]
    if len({gpu.name for gpu in nvidia.gpus}) > 1 and variables.get(ORDER) != "PCI_BUS_ID":
        notes.append(f"GPUs differ: set {ORDER}=PCI_BUS_ID, so that CUDA numbers them as they are numbered here")
    pretended = emulated(settings.emu_devices("")) if settings.emu_devices("") else []
    devices, dropped = _named([*nvidia.gpus, *amd.gpus, *pretended])
    if not devices:
        why = [reason for answer in answers.values() for reason in answer.reasons]
        notes.insert(0, f"{NO_GPU}: {'; '.join([*why, *dropped.values()])}")
    devices.sort(key=lambda device: device.gpu is not None and device.gpu.integrated)
    return Discovery([*devices, discover_cpu(root)], notes, dropped)


def refreshed(found: Discovery, root: Path = ROOT) -> Discovery:
    """The same devices with the memory that is free now. One that no tool reports any more keeps its old numbers."""
    now = {device.name: device for device in discover(root).devices}
    stale = [device.name for device in found.devices if device.name not in now]
    notes = [f"unable to refresh free memory, using old values: {', '.join(stale)}"] if stale else []
    return replace(
        found, devices=[now.get(device.name, device) for device in found.devices], notes=[*found.notes, *notes]
    )


def find(found: Discovery, name: str) -> Device:
    """The device of a name, "cuda" for the first of its kind. Raises UsageError naming those that are there."""
    wanted = name if ":" in name or name == "cpu" else f"{name}:0"
    for device in found.devices:
        if device.name == wanted:
            return device
    reason = found.dropped.get(wanted, "there is no such device")
    there = ", ".join(device.name for device in found.devices)
    raise UsageError(f"device {name!r}: {reason}; this machine has {there} (python -m exllama.devices says more)")


def _missing(root: Path, vendor: str, answer: Answer) -> list[str]:
    """What is on the bus and in no list: a driver that is not there, or a GPU that fell off."""
    there, listed = on_pci_bus(root, vendor), len([gpu for gpu in answer.gpus if not gpu.parent])
    if there <= listed:
        return [reason for reason in answer.reasons if answer.gpus and "is not on PATH" not in reason]
    return [f"{there} on the PCI bus, {listed} listed: {'; '.join(answer.reasons) or 'one may have failed'}"]


def _named(gpus: Sequence[Gpu]) -> tuple[list[Device], dict[str, str]]:
    """Devices under the names by which they are used, ordinals counted as a process counts them."""
    devices, dropped, counts = [], {}, dict.fromkeys(_BACKENDS.values(), 0)
    for gpu in gpus:
        backend = _BACKENDS[gpu.vendor]
        name = f"{backend}:{counts[backend]}"
        counts[backend] += 1
        reason = unusable(gpu)
        if reason:
            dropped[name] = f"{gpu.name or gpu.uuid}: {reason}"
            continue
        assert gpu.total is not None
        devices.append(Device(name, gpu.name, gpu.total, gpu.total if gpu.free is None else gpu.free, gpu=gpu))
    return devices, dropped


def unusable(gpu: Gpu) -> str:
    """Why the kernels cannot run on a GPU, or ""."""
    if gpu.vendor == "nvidia" and gpu.arch and int(gpu.arch[3:]) < _OLDEST_SM:
        return f"compute capability {gpu.arch[3:-1]}.{gpu.arch[-1]}, and 7.5 or newer is needed"
    if gpu.vendor == "amd" and gpu.arch and not re.match(rf"({'|'.join(_AMD_FAMILIES)})", gpu.arch):
        return f"target {gpu.arch}, and {', '.join(_AMD_FAMILIES)} are supported"
    if gpu.total is None:
        return "no source tells how much memory it has"
    if gpu.vendor != "emulated" and gpu.total < CONTEXT_BYTES:
        return f"{gpu.total >> 20} MiB of memory, and a driver's context alone takes {CONTEXT_BYTES >> 20}"
    return ""
