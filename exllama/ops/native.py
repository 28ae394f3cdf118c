"""The extension module of the CPU kernels, and what this machine can do with it."""

from __future__ import annotations

import functools
import os
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from exllama import settings
from exllama.errors import BuildError, DeviceError


@functools.cache
def native() -> ModuleType:
    """The extension module. Raises BuildError with the missing tool when it is absent and cannot be built."""
    import exllama_ext

    try:
        return exllama_ext.load()
    except ImportError as error:
        raise BuildError(str(error)) from error


def cpu_level() -> str:
    """The instruction-set level in use: EXLLAMA_CPU_ISA, else the best of this machine."""
    wanted = settings.cpu_isa()
    levels: list[str] = native().levels()
    if wanted is not None and wanted not in levels:
        raise DeviceError(f"EXLLAMA_CPU_ISA asks for {wanted!r}, but this processor runs {', '.join(levels)}")
    return wanted or levels[-1]


@functools.cache
def numerics() -> str:
    """Names the kernels whose results are equal bit for bit: a digest of the native module, and the level in use."""
    digest = blake2b(Path(str(native().__file__)).read_bytes(), digest_size=16).hexdigest()
    return f"{digest} {cpu_level()}"


def default_threads() -> int:
    """EXLLAMA_THREADS, else the processors this process may use."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.threads() or affinity


@functools.cache
def team(threads: int) -> Any:
    """The engine's threads; plans with the same number of them share one team."""
    return native().Team(threads)


def machine_limits(threads: int | None = None) -> dict[str, float]:
    """What this machine can do at most, measured now with `threads` workers (about a second).

    read_gb_per_s: 10^9 bytes per second read from memory, best of five passes over 1 GiB. int8_gops: 10^9 operations
    per second of the int8 dot products of the level in use (a multiply and an add are two).
    """
    workers = team(threads or default_threads())
    read = native().read_bandwidth(workers, cpu_level(), 1 << 30, 5)
    return {"read_gb_per_s": read / 1e9, "int8_gops": native().int8_peak(workers, cpu_level()) / 1e9}
