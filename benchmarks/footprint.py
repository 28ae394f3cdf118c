"""What starting costs: time to import and to load, and memory, each in a fresh process.

    python benchmarks/footprint.py [-m MODEL] [--runs 5]

Prints one JSON object: medians over the runs of the seconds that `import exllama` and the first use of Generator take
beyond torch's own import and that loading takes; the file's size; and how much the process grew at most and in the end,
in MiB, from the imports to the first token, and what is left of that when the generator was closed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from exllama.loader.sources import resolve

# Linux only: VmHWM is the largest resident memory so far, VmRSS the present one, both in KiB.
PROGRAM = """
import json, sys, time

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024

import torch
times = [time.perf_counter()]
import exllama
times.append(time.perf_counter())
exllama.Generator
times.append(time.perf_counter())
before = memory("VmRSS")
generator = exllama.Generator.from_pretrained(sys.argv[1], cache_tokens=1024)
times.append(time.perf_counter())
generator.generate("The capital of France is", max_new_tokens=1)
names = ["import_seconds", "first_use_seconds", "load_seconds"]
found = dict(zip(names, (b - a for a, b in zip(times, times[1:])), strict=True))
found |= {"peak_mib": memory("VmHWM") - before, "resident_mib": memory("VmRSS") - before}
generator.close()
del generator
print(json.dumps(found | {"left_mib": memory("VmRSS") - before}))
"""


def measure(model: Path) -> dict[str, float]:
    """Seconds and MiB of one fresh process. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-c", PROGRAM, str(model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def size(model: Path) -> int:
    """Bytes of a model's weights on disk."""
    files = [model] if model.is_file() else list(model.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    model = resolve(arguments.model)
    runs = [measure(model) for _ in range(arguments.runs)]
    medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    print(json.dumps({"file_mib": round(size(model) / (1 << 20), 1), **medians}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
