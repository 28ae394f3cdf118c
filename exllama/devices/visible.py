"""Which GPUs a process may see: the variables of CUDA and ROCm, and how they combine. Pure functions.

Rules: "CUDA Environment Variables" in NVIDIA's CUDA C++ Programming Guide, "GPU isolation techniques" in AMD's ROCm
documentation. An invalid item ends the list, as in CUDA: `0,2,-1,1` shows 0 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from exllama.devices.device import Gpu

CUDA, ROCR, HIP, ORDINAL = (
    "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL",
)  # fmt: skip
ORDER, OVERRIDE = "CUDA_DEVICE_ORDER", "HSA_OVERRIDE_GFX_VERSION"
HIP_VARIABLES = (HIP, ORDINAL, CUDA)  # the first that is set counts


@dataclass(frozen=True)
class Selection:
    """What is visible, in the order of its ordinals, and what a user should know about the rest."""

    gpus: list[Gpu]
    notes: list[str] = field(default_factory=list)


def select_nvidia(gpus: Sequence[Gpu], variables: Mapping[str, str]) -> Selection:
    """NVIDIA GPUs after CUDA_VISIBLE_DEVICES. A GPU that is split by MIG stands for nothing: its parts have UUIDs."""
    whole = [gpu for gpu in gpus if not gpu.parent]
    usable, parts = [gpu for gpu in whole if not gpu.partitioned], [gpu for gpu in gpus if gpu.parent]
    if CUDA not in variables:
        notes = [
            f"{gpu.name} {gpu.uuid} is split by MIG: only its parts can be used" for gpu in whole if gpu.partitioned
        ]
        return Selection(usable or parts[:1], notes)  # one MIG device a process
    chosen = _choose(CUDA, variables[CUDA], whole, parts)
    if any(gpu.parent for gpu in chosen.gpus) and not all(gpu.parent for gpu in chosen.gpus):
        return Selection(
            [], [*chosen.notes, f"{CUDA}={variables[CUDA]} mixes MIG devices and whole GPUs: name one kind"]
        )
    split = [gpu for gpu in chosen.gpus if gpu.partitioned]
    notes = [f"{CUDA} names {gpu.uuid or gpu.index}, which is split by MIG: name one of its parts" for gpu in split]
    seen = [gpu for gpu in chosen.gpus if not gpu.partitioned]
    return Selection(seen[:1] if parts and seen and seen[0].parent else seen, [*chosen.notes, *notes])


def select_amd(gpus: Sequence[Gpu], variables: Mapping[str, str]) -> Selection:
    """AMD GPUs: ROCR_VISIBLE_DEVICES filters first, the variables of HIP count what is left from 0."""
    seen, notes = list(gpus), []
    if ROCR in variables:
        chosen = _choose(ROCR, variables[ROCR], seen, [])
        seen, notes = chosen.gpus, chosen.notes
    given = [name for name in HIP_VARIABLES if name in variables]
    if given:
        chosen = _choose(given[0], variables[given[0]], seen, [], by_uuid=False)
        seen, notes = chosen.gpus, [*notes, *chosen.notes]
        ignored = [name for name in given[1:] if variables[name] != variables[given[0]]]
        notes += [f"{name}={variables[name]} does not count for AMD GPUs: {given[0]} is set" for name in ignored]
    claimed = {name: value for name, value in variables.items() if name.startswith(OVERRIDE)}
    if gpus:
        notes += [f"{name}={value}: ROCm takes the GPU for another one than it is" for name, value in claimed.items()]
    return Selection(seen, notes)


def overridden(variables: Mapping[str, str]) -> list[str]:
    """The notes of a user who chose devices by variables."""
    named = [f"{name}={variables[name]}" for name in (CUDA, ROCR, HIP, ORDINAL) if name in variables]
    hint = "if GPUs are not correctly discovered, unset and try again"
    return [f"user overrode visible devices: {' '.join(named)}; {hint}"] if named else []


def only(gpu: Gpu, variables: Mapping[str, str], is_linux: bool = True) -> dict[str, str]:
    """Changes to the environment of a child that shall see this GPU alone, as ordinal 0."""
    if gpu.vendor == "nvidia":
        return {ORDER: "PCI_BUS_ID", CUDA: gpu.uuid or str(gpu.index)}
    if gpu.vendor == "amd":
        token = gpu.uuid or str(gpu.index)
        if not is_linux:
            return {HIP: str(gpu.index)}
        return {ROCR: token} | {name: "0" for name in HIP_VARIABLES if name in variables}
    return {}


def _choose(variable: str, value: str, whole: Sequence[Gpu], parts: Sequence[Gpu], by_uuid: bool = True) -> Selection:
    """The devices that a list names, up to the first item that names none."""
    found: list[Gpu] = []
    items = [item.strip() for item in value.split(",")] if value.strip() else []
    for item in items:
        if item == "-1":
            break
        gpu = _find(item, whole, parts, by_uuid)
        if gpu is None:
            note = f"{variable}={value}: {item!r} names no device or several, and what follows it does not count"
            return Selection(found, [f"{note}; {len(whole)} were found"])
        if gpu in found:
            return Selection([], [f"{variable}={value} names a device twice: name each once"])
        found.append(gpu)
    return Selection(found, [] if found else [f"{variable}={value} hides every device"])


def _find(item: str, whole: Sequence[Gpu], parts: Sequence[Gpu], by_uuid: bool) -> Gpu | None:
    if item.isascii() and item.isdecimal():
        return whole[int(item)] if len(item) < 6 and int(item) < len(whole) else None
    if not by_uuid or not item.startswith(("GPU-", "MIG-")):
        return None
    if item.startswith("GPU-") and len(item) < len("GPU-") + 1:
        return None
    pool = parts if item.startswith("MIG-") else whole
    named = [gpu for gpu in pool if gpu.uuid.lower().startswith(item.lower())]
    exact = [gpu for gpu in named if gpu.uuid.lower() == item.lower()]
    found = exact or named
    return found[0] if len(found) == 1 else None
