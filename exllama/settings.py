"""All that exllama reads from the environment; no other module looks there."""

from __future__ import annotations

import os
from pathlib import Path

from exllama.errors import UsageError

CPU_ISA_LEVELS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")


def threads() -> int | None:
    """`EXLLAMA_THREADS`: number of CPU threads, or None to use every processor that the process may run on."""
    text = os.environ.get("EXLLAMA_THREADS", "").strip()
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise UsageError(f"EXLLAMA_THREADS is {text!r}, expected a number from 1 to 1024")
    return int(text)


def cpu_isa() -> str | None:
    """`EXLLAMA_CPU_ISA`: highest instruction set to use, one of CPU_ISA_LEVELS, or None for the best there is."""
    text = os.environ.get("EXLLAMA_CPU_ISA", "").strip().lower()
    if text and text not in CPU_ISA_LEVELS:
        raise UsageError(f"EXLLAMA_CPU_ISA is {text!r}, expected one of {', '.join(CPU_ISA_LEVELS)}")
    return text or None


def emu_devices(default: str = "1x1GiB") -> str:
    """`EXLLAMA_EMU_DEVICES`: the emulated GPUs emu:0, emu:1, ..., as in 2x512MiB or 512MiB,1GiB; default 1x1GiB."""
    return os.environ.get("EXLLAMA_EMU_DEVICES", "").strip() or default


def probe_seconds() -> float | None:
    """`EXLLAMA_PROBE_TIMEOUT`: seconds in which all devices must be listed, and again tried; default 30, Windows 90."""
    text = os.environ.get("EXLLAMA_PROBE_TIMEOUT", "").strip()
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 3600:
        raise UsageError(f"EXLLAMA_PROBE_TIMEOUT is {text!r}, expected seconds from 1 to 3600")
    return float(text)


def visible_devices() -> dict[str, str]:
    """The variables of CUDA and ROCm that choose, order or rename GPUs, as far as they are set."""
    names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    claims = sorted(name for name in os.environ if name.startswith("HSA_OVERRIDE_GFX_VERSION"))
    return {name: os.environ[name] for name in (*names, "GPU_DEVICE_ORDINAL", *claims) if name in os.environ}


def jetpack() -> str:
    """The version of JetPack that JETSON_JETPACK names, as in 6.1, or ""."""
    return os.environ.get("JETSON_JETPACK", "").strip()


def debug_pages() -> bool:
    """`EXLLAMA_DEBUG_PAGES`: 1 fills cache pages that hold nothing any more with NaN, to find who reads them."""
    text = os.environ.get("EXLLAMA_DEBUG_PAGES", "").strip()
    if text not in ("", "0", "1"):
        raise UsageError(f"EXLLAMA_DEBUG_PAGES is {text!r}, expected 0 or 1")
    return text == "1"


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process: this one's, with changes."""
    return {**os.environ, **changes}


def cache_dir() -> Path:
    """`EXLLAMA_CACHE_DIR`: where downloaded models are kept; default: the platform's user cache folder."""
    text = os.environ.get("EXLLAMA_CACHE_DIR", "").strip()
    if text:
        return Path(text).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(base).expanduser() / "exllama"
