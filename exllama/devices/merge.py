"""What several sources say of the same GPUs, put together. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from exllama.devices.device import Gpu

_AGREE = 0.05  # totals of two sources differ by what firmware and ECC keep for themselves


def merge(*sources: Sequence[Gpu]) -> tuple[list[Gpu], list[str]]:
    """One entry a GPU, by UUID, else by PCI id. Earlier sources win, later ones fill what is unknown.

    A GPU that a later source alone knows is added. Returns the GPUs and notes of contradictions.
    """
    found: list[Gpu] = []
    notes: list[str] = []
    for source in sources:
        for gpu in source:
            at = next((i for i, other in enumerate(found) if same(other, gpu)), None)
            if at is None:
                found.append(gpu)
                continue
            known = found[at]
            if known.total and gpu.total and abs(known.total - gpu.total) > _AGREE * max(known.total, gpu.total):
                said = " and ".join(f"{_from(each)} {each.total:,}" for each in (known, gpu))
                notes.append(f"{known.name or known.pci or known.uuid}: bytes of memory are {said}: using the first")
            found[at] = _filled(known, gpu)
    return found, notes


def same(one: Gpu, other: Gpu) -> bool:
    """Whether two entries mean one GPU. Numbers say nothing: every tool counts in its own way."""
    if one.vendor != other.vendor or bool(one.parent) != bool(other.parent):
        return False
    if one.uuid and other.uuid:
        return one.uuid.lower() == other.uuid.lower()
    return bool(one.pci) and one.pci == other.pci and not one.parent


def _filled(known: Gpu, other: Gpu) -> Gpu:
    missing = {key: getattr(other, key) for key in ("uuid", "pci", "name", "arch", "driver") if not getattr(known, key)}
    if known.total is None:
        missing["total"] = other.total
    if known.free is None and (known.total is None or known.total == other.total):
        missing["free"] = other.free  # of another total it may be measured otherwise
    flags = {key: getattr(known, key) or getattr(other, key) for key in ("integrated", "partitioned")}
    return replace(known, **missing, **flags, sources=(*known.sources, *other.sources))


def _from(gpu: Gpu) -> str:
    return f"according to {'/'.join(gpu.sources)}"
