"""One command for a machine with a GPU: builds, tests and measures there, writes gpu_check.json and gpu_check.md.

    make gpu-check OUT=folder                  everything, in less than nine minutes
    make gpu-check OUT=folder PART=build,tests
    make gpu-check OUT=folder DEVICE=emu       the same walk on the emulator with tiny shapes; its times mean nothing

Needs no network: PyTorch, pytest, ninja and nvcc (or clang for AMD) as they are found. A part that fails does not stop
the others; the exit status says whether all passed.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import gpu_kernels
from exllama import ops
from exllama.settings import child_environment

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 8.5 * 60  # seconds
Lines = Iterator[dict[str, Any]]


@dataclass
class Check:
    """The device under test, and what has been found so far."""

    device: str
    out: Path
    started: float = field(default_factory=time.monotonic)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    bandwidth: float = 0.0  # of a copy on the device, bytes per second, reads and writes counted

    @property
    def backend(self) -> str:
        return self.device.split(":")[0]

    @property
    def sizes(self) -> gpu_kernels.Sizes:
        return gpu_kernels.TINY if self.backend == "emu" else gpu_kernels.FULL

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return BUDGET - (time.monotonic() - self.started)


def build(check: Check) -> Lines:
    """The library for the GPU at hand, and what that GPU is."""
    start = time.perf_counter()
    device = ops.gpu_device(check.device)
    yield {"test": "build and open", "seconds": round(time.perf_counter() - start, 1), **device.describe()}
    size = 1 << (16 if check.backend == "emu" else 30)
    check.bandwidth = 2 * size / device.copy_seconds(size, 10)
    yield {"test": "copy", "gb_per_s": round(check.bandwidth / 1e9, 1), "bytes": 2 * size}


def tests(check: Check) -> Lines:
    """The tests of GPU devices and of kernels, on this device; what tests the emulator itself is left out."""
    folders = ["tests/ops/test_gpu.py"] if check.backend == "emu" else ["tests/kernels", "tests/ops/test_gpu.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *folders]
    environment = child_environment(EXL_TEST_BACKEND=check.backend, PYTHONPATH=str(ROOT))
    log = check.out / "tests.log"
    with log.open("w") as file:
        limit = max(60, check.left - 240)
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=limit)
    last = (log.read_text().strip().splitlines() or [""])[-1]
    yield {"test": "pytest", "passed": done.returncode == 0, "summary": last}
    if done.returncode:
        raise RuntimeError(f"tests failed, see {log.name}: {last}")


def sanitizer(check: Check) -> Lines:
    """compute-sanitizer's memcheck and racecheck over a small plan."""
    tool = shutil.which("compute-sanitizer")
    if check.backend != "cuda" or not tool:
        yield {"test": "compute-sanitizer", "skipped": "not found" if check.backend == "cuda" else "CUDA alone has it"}
        return
    script = "from tests.ops.test_gpu import run, small_plan; print(run(small_plan('cuda:0'), [1, 2, 3]).sum())"
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, "-c", script]
        environment = child_environment(PYTHONPATH=str(ROOT))
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        (check.out / f"{kind}.log").write_text(done.stdout + done.stderr)
        yield {"test": kind, "passed": done.returncode == 0}
        if done.returncode:
            raise RuntimeError(f"{kind} reports errors, see {kind}.log")


def peers(check: Check) -> Lines:
    """torch's fp16 products through the vendor's library, same shapes."""
    import torch

    if check.backend == "emu" or not torch.cuda.is_available():
        yield {"test": "torch", "skipped": "torch has no GPU here"}
        return
    for columns, width in check.sizes.matrices:
        count = max(2, min(16, int(check.sizes.rotate_bytes / (2 * columns * width))))
        weights = [torch.randn(width, columns, device="cuda", dtype=torch.float16) for _ in range(count)]
        for rows in (1, 16, 2048):
            x = torch.randn(rows, columns, device="cuda", dtype=torch.float16)
            for weight in weights:
                x @ weight.T
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(10):
                for weight in weights:
                    x @ weight.T
            torch.cuda.synchronize()
            seconds = (time.perf_counter() - start) / (10 * count)
            yield {
                "test": "torch fp16", "k": columns, "n": width, "rows": rows, "us": round(seconds * 1e6, 1),
                "gb_per_s": round(2e-9 * columns * width / seconds, 1),
                "tflops": round(2e-12 * rows * columns * width / seconds, 1),
            }  # fmt: skip


def kernels(check: Check) -> Lines:
    """Matrix products and decode attention against the copy bandwidth."""
    yield from gpu_kernels.attention(check.device, check.sizes, check.bandwidth)
    yield from gpu_kernels.products(check.device, check.sizes, check.bandwidth)


def models(check: Check) -> Lines:
    """Whole models on random weights."""
    yield from gpu_kernels.models(check.device, check.sizes, check.bandwidth)


PARTS: dict[str, Callable[[Check], Lines]] = {
    "build": build, "models": models, "kernels": kernels, "peers": peers, "tests": tests, "sanitizer": sanitizer,
}  # fmt: skip


def run_part(check: Check, name: str) -> bool:
    """Runs a part, keeps its lines, prints them; False if it failed or there was no time for it."""
    found: dict[str, Any] = {"lines": []}
    check.parts[name] = found
    if check.left < 20:
        found["error"] = "no time was left"
        return False
    start = time.monotonic()
    try:
        for line in PARTS[name](check):
            found["lines"].append(line)
            print(name, json.dumps(line), flush=True)
            write(check)
            if check.left < 5:
                raise TimeoutError("no time was left for the rest of this part")
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    found["seconds"] = round(time.monotonic() - start, 1)
    return "error" not in found


def write(check: Check) -> None:
    """gpu_check.json and gpu_check.md with what is known so far."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    report = {"commit": commit, "device": check.device, "python": platform.python_version(), "parts": check.parts}
    (check.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    (check.out / "gpu_check.md").write_text(markdown(report))


def markdown(report: dict[str, Any]) -> str:
    """One table a kind of line."""
    text = [f"# GPU check of {report['device']}", "", f"Commit {report['commit']}, Python {report['python']}."]
    if report["device"].startswith("emu"):
        text += ["", "**Emulated on a CPU: the walk is real, the times mean nothing.**"]
    for name, part in report["parts"].items():
        text += ["", f"## {name}", *([f"**{part['error']}**", ""] if "error" in part else [])]
        columns: list[str] = []
        for line in part["lines"]:
            if list(line) != columns:
                columns = list(line)
                text += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            text.append("| " + " | ".join(str(value) for value in line.values()) + " |")
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, hip or emu, with :N for another than the first")
    parser.add_argument("--part", default=",".join(PARTS), help="parts, separated by commas (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports")
    arguments = parser.parse_args()
    wanted = arguments.part.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]!r}, but {', '.join(PARTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = arguments.device if ":" in arguments.device else f"{arguments.device}:0"
    check = Check(device, arguments.out)
    passed = [run_part(check, name) for name in dict.fromkeys(["build", *wanted])]
    write(check)
    print(f"{sum(passed)} of {len(passed)} parts passed: {arguments.out / 'gpu_check.md'}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
