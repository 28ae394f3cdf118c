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
