"""What this machine has and whether it computes correctly: `python -m exllama.devices`."""

from __future__ import annotations

import time
from typing import Any

import torch

from exllama import ops
from exllama.devices import Device, Discovery, discover
from exllama.devices.trial import TOLERANCE, largest_error, validated
from exllama.errors import ExllamaError

_BACKENDS = {"cuda": "CUDA", "hip": "ROCm", "emu": "emulated"}


def inspect() -> dict[str, Any]:
    """The JSON object of `--json`: devices, GPUs, models loaded in this process, and a computation that was checked."""
    found = validated(discover())
    gpus = [describe_gpu(device) for device in found.gpus]
    return {
        "devices": [describe_cpu(found), *gpus],
        "gpu_stats": {"gpus": gpus, "dropped": found.dropped, "reason": "" if gpus else "; ".join(found.notes)},
        "models_loaded": 0,
        "inference_test": inference_test(),
        "notes": [*found.notes, *_about_torch(found)],
    }


def describe_cpu(found: Discovery) -> dict[str, Any]:
    cpu = found.cpu
    return {
        "device": cpu.name,
        "name": cpu.model,
        "instruction_set": instruction_set(),
        "cores": cpu.cores,
        "logical_cores": cpu.logical_cores,
        "cpu_quota": cpu.quota,
        "threads": ops.default_threads(),
        "memory_total": cpu.total,
        "memory_free": cpu.free,
    }


def describe_gpu(device: Device) -> dict[str, Any]:
    """One GPU of `gpu_stats`; bytes."""
    gpu = device.gpu
    assert gpu is not None
    return {
        "device": device.name,
        "name": gpu.name,
        "vendor": gpu.vendor,
        "architecture": gpu.arch,
        "uuid": gpu.uuid,
        "pci": gpu.pci,
        "driver": gpu.driver,
        "integrated": gpu.integrated,
        "memory_total": device.total,
        "memory_free": device.free,
        "sources": list(gpu.sources),
    }


def instruction_set() -> str:
    """The level that kernels would use, or why there is none."""
    try:
        return ops.cpu_level()
    except ExllamaError as error:
        return f"unavailable: {error}"


def inference_test() -> dict[str, Any]:
    """A layer of attention on the CPU, compared with plain torch. GPUs had theirs in devices/trial.py."""
    begin = time.perf_counter()
    try:
        error = largest_error("cpu")
    except ExllamaError as reason:
        status = f"failed: {reason}"
    else:
        wrong = f"failed: the result is off by {error:.1e}, at most {TOLERANCE:.0e} was expected"
        status = "success" if error <= TOLERANCE else wrong
    return {"status": status, "duration_seconds": round(time.perf_counter() - begin, 4)}


def _about_torch(found: Discovery) -> list[str]:
    """exllama's own kernels need no CUDA in torch, but users of both will want to know."""
    real = [device.name for device in found.gpus if not device.name.startswith("emu")]
    if not real or torch.version.cuda or torch.version.hip:
        return []
    return [
        f"The installed version of PyTorch is {torch.__version__} and does not support CUDA or ROCm: exllama runs "
        f"on {', '.join(real)} all the same"
    ]


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    cpu, test = report["devices"][0], report["inference_test"]
    quota = "" if cpu["cpu_quota"] is None else f", {cpu['cpu_quota']:g} of them granted"
    dropped = report["gpu_stats"]["dropped"]
    return "\n".join(
        [
            *_gpu_lines(report["gpu_stats"]["gpus"]),
            f"cpu: {cpu['name']}, {cpu['cores']} cores ({cpu['logical_cores']} logical{quota})",
            f"kernels: {cpu['threads']} threads, instruction set {cpu['instruction_set']}",
            f"memory: {cpu['memory_free'] / 2**30:.1f} GiB free of {cpu['memory_total'] / 2**30:.1f} GiB",
            f"inference test: {test['status']} ({test['duration_seconds']:.3f} s)",
            *(f"not used: {name}: {reason}" for name, reason in dropped.items()),
            *report["notes"],
        ]
    )


def _gpu_lines(gpus: list[dict[str, Any]]) -> list[str]:
    lines = []
    for backend, kind in _BACKENDS.items():
        own = [gpu for gpu in gpus if gpu["device"].startswith(f"{backend}:")]
        if own:
            lines.append(f"found {len(own)} {kind} device{'s' if len(own) > 1 else ''}")
        for gpu in own:
            what = ", ".join(part for part in (gpu["name"], _capability(gpu["architecture"]), gpu["driver"]) if part)
            room = f"{gpu['memory_free'] / 2**30:.1f} GiB free of {gpu['memory_total'] / 2**30:.1f} GiB"
            lines.append(f"Device {gpu['device'].split(':')[1]}: {what}: {room}, computes as it should")
    return lines


def _capability(arch: str) -> str:
    return f"compute capability {arch[3:-1]}.{arch[-1]}" if arch.startswith("sm_") else arch


def exit_code(report: dict[str, Any]) -> int:
    """1 when the CPU computes wrong or a GPU had to be left out, which scripts want to know."""
    return 0 if report["inference_test"]["status"] == "success" and not report["gpu_stats"]["dropped"] else 1
