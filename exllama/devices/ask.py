"""`python -m exllama.devices.ask nvml|torch`: asks a library for GPUs and prints them as JSON.

A process of its own: a driver that hangs or aborts takes nobody along, and the caller never has a driver loaded.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from exllama.devices.device import Gpu
from exllama.devices.numbers import pci_id


def from_nvml() -> list[Gpu]:
    """NVML through nvidia-ml-py. Raises ImportError when that is absent, and NVML's own errors."""
    import pynvml

    pynvml.nvmlInit()
    driver = _text(pynvml.nvmlSystemGetDriverVersion())
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        total = free = None
        with contextlib.suppress(pynvml.NVMLError):  # "Not Supported" where memory is the host's
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            total, free = int(memory.total), int(memory.free)
        arch, split = "", False
        with contextlib.suppress(pynvml.NVMLError):
            arch = "sm_{}{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle))
        with contextlib.suppress(pynvml.NVMLError):
            split = pynvml.nvmlDeviceGetMigMode(handle)[0] == 1
        found.append(
            Gpu(
                vendor="nvidia", index=index, uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
                pci=pci_id(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId)),
                name=_text(pynvml.nvmlDeviceGetName(handle)), arch=arch, total=total, free=free, driver=driver,
                partitioned=split, sources=("NVML",),
            )
        )  # fmt: skip
    return found


def from_torch() -> list[Gpu]:
    """What torch sees: the devices of its own CUDA or ROCm, with free memory as its context finds it."""
    import torch

    vendor = "amd" if torch.version.hip else "nvidia"
    found = []
    for index in range(torch.cuda.device_count()):
        known: Any = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        arch = known.gcnArchName.split(":")[0] if vendor == "amd" else f"sm_{known.major}{known.minor}"
        uuid = getattr(known, "uuid", None)
        found.append(
            Gpu(
                vendor=vendor, index=index, pci=_place(known),
                uuid=f"GPU-{uuid}" if uuid and vendor == "nvidia" else "",
                name=known.name, arch=arch, total=total, free=free, sources=("torch",),
                integrated=bool(getattr(known, "is_integrated", False)),
            )
        )  # fmt: skip
    return found


def parse_answer(text: str) -> list[Gpu]:
    """What this program printed. Libraries may print before it; ValueError where it is no such answer."""
    lines = [line for line in text.splitlines() if line.startswith("[")]
    try:
        return [Gpu(**{**entry, "sources": tuple(entry["sources"])}) for entry in json.loads(lines[-1])]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no list of GPUs but {text[:80]!r}") from error


def _place(known: Any) -> str:
    """Since torch 2.5."""
    domain, bus, device = (getattr(known, f"pci_{part}_id", -1) for part in ("domain", "bus", "device"))
    return pci_id(f"{domain:x}:{bus:02x}:{device:02x}.0") if min(domain, bus, device) >= 0 else ""


def _text(value: Any) -> str:
    """Older bindings return bytes."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def main(arguments: Sequence[str]) -> int:
    """Prints one line of JSON; a failure is one line on stderr and exit code 1."""
    ask = {"nvml": from_nvml, "torch": from_torch}[arguments[0]]
    try:
        found = ask()
    except Exception as error:  # a library's own errors have no common base; whatever it is, it is the answer
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(json.dumps([asdict(gpu) for gpu in found]) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
