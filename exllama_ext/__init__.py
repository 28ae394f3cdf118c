"""The native module: finds `_C`, else builds it, else says exactly why there is none."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType


def load() -> ModuleType:
    """The module `exllama_ext._C`. Raises ImportError with the reason when it is absent and cannot be built."""
    try:
        return importlib.import_module("exllama_ext._C")
    except ModuleNotFoundError as missing:
        if missing.name != "exllama_ext._C":
            raise
    from exllama_ext.build import build_cpu
    from exllama_ext.tools import BuildFailed

    try:
        build_cpu(Path(__file__).resolve().parent)
    except (BuildFailed, OSError) as error:
        raise ImportError(f"the native module exllama_ext._C is not built, and building it failed: {error}") from error
    importlib.invalidate_caches()
    return importlib.import_module("exllama_ext._C")


def gpu_library(backend: str, cache: Path) -> Path:
    """The library of "cuda", "hip" or "emu", built for this machine unless `cache` has it.

    Raises ImportError with the reason when it cannot be built.
    """
    from exllama_ext.emulator_build import build_emulator
    from exllama_ext.gpu_build import GpuBuild, build_gpu, cuda_archs_here
    from exllama_ext.tools import BuildFailed, show_progress

    shipped = Path(__file__).resolve().parent / f"libexllama_{backend}.so"
    if shipped.exists() and backend != "emu":  # built ahead, as in a wheel
        return shipped
    try:
        if backend == "emu":
            return build_emulator(cache, progress=show_progress)
        archs = cuda_archs_here() if backend == "cuda" else []
        return build_gpu(cache, GpuBuild(backend, archs), show_progress)
    except (BuildFailed, OSError) as error:
        raise ImportError(str(error)) from error
