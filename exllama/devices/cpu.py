"""What this process may use of the machine's CPU: affinity mask, cgroup limits, memory.

Every reader takes the folder that stands for `/`, so tests hand in recorded trees. A file that is missing or says
nonsense means "no limit known", never an exception. Layouts: proc(5), cgroups(7), the kernel's cgroup documents.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from exllama.devices.device import Device

ROOT = Path("/")
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63


def discover_cpu(root: Path = ROOT) -> Device:
    """The CPU as this process sees it."""
    allowed = allowed_cores()
    total, free = memory(root)
    return Device(
        name="cpu",
        model=model_name(root),
        total=total,
        free=free,
        cores=physical_cores(allowed, root),
        logical_cores=len(allowed),
        quota=cpu_quota(root),
    )


def allowed_cores() -> set[int]:
    """Logical cores of the affinity mask; all cores where the system has no such mask."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def physical_cores(allowed: Iterable[int], root: Path = ROOT) -> int:
    """How many cores the allowed logical cores belong to; siblings of one core count once."""
    cores = set()
    for index in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{index}/topology"
        siblings = _text(topology / "thread_siblings_list") or _text(topology / "core_cpus_list")
        cores.add(siblings or str(index))
    return max(1, len(cores))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Seconds of CPU per second that the tightest cgroup grants, or None."""
    found = []
    for folder in _cgroup_folders(root, "cpu"):
        fields = _text(folder / "cpu.max").split()
        if len(fields) != 2:
            fields = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
        quota, period = (_number(field) for field in fields)
        if quota and period:
            found.append(quota / period)
    return min(found, default=None)


def memory(root: Path = ROOT) -> tuple[int, int]:
    """(total, free) bytes for this process: the machine's, cut to the tightest cgroup limit. (0, 0) if unknown."""
    total, free = _machine_memory(root)
    for folder in _cgroup_folders(root, "memory"):
        limit = _number(_text(folder / "memory.max")) or _number(_text(folder / "memory.limit_in_bytes"))
        used = _number(_text(folder / "memory.current")) or _number(_text(folder / "memory.usage_in_bytes")) or 0
        if limit and limit < min(total or UNLIMITED, UNLIMITED):
            total = limit
            free = min(free, max(0, limit - used + _reclaimable(folder)))
    return total, free


def model_name(root: Path = ROOT) -> str:
    """What the processor calls itself."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "Hardware"} and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _machine_memory(root: Path) -> tuple[int, int]:
    sizes = {}
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        kilobytes = _number(value.replace("kB", "").strip())
        if kilobytes is not None:
            sizes[key] = kilobytes * 1024
    total = sizes.get("MemTotal", 0)
    return total, sizes.get("MemAvailable", sizes.get("MemFree", 0))


def _reclaimable(folder: Path) -> int:
    """Page cache that the kernel gives back under pressure, though `memory.current` counts it."""
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key in {"inactive_file", "total_inactive_file"}:
            return _number(value) or 0
    return 0


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and its parents, version 2 and 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
