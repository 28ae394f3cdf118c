"""Faults planted into the attention and rope kernels, each of which the comparisons of the other tests must see.

A fault is a replacement in the text of a kernel, whose own headers are put in place of their #include lines.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from exllama_ext.emulator_build import KERNELS, EmulatorBuild, build_emulator
from tests.kernels.attend import Sequences, Shape
from tests.kernels.library import CACHE, SANITIZE, KernelError, Library
from tests.kernels.sanitizers import run
from tests.kernels.test_attention import BOUND

LENGTHS = [600, 70]
ROWS = [(0, 597), (0, 598), (0, 599), (1, 69)]
HALF, PACKED = Shape(6, 2, 64, window=400), Shape(4, 2, 64, 4, 4)


@dataclass(frozen=True)
class Fault:
    old: str
    new: str
    shape: Shape = HALF
    order: str = "random"
    splits: int = 1
    rows: list[tuple[int, int]] = field(default_factory=lambda: ROWS)
    sanitize: str = ""


# A change in the last place of float32 shows in one of some thousand numbers of fp16.
MANY_ROWS = [(0, position) for position in range(530, 600)]
FAULTS = {
    "none": Fault("", ""),
    "none-packed-splits": Fault("", "", PACKED, splits=3, sanitize="thread"),
    "none-many-rows": Fault("", "", splits=2, rows=MANY_ROWS),
    "none-address": Fault("", "", PACKED, splits=2, sanitize="address"),
    "no wait for copies": Fault("copy_async_wait<stages - 2>();", ""),
    "wait for one too few": Fault("copy_async_wait<stages - 2>();", "copy_async_wait<stages - 1>();"),
    "no barrier after the wait": Fault("<stages - 2>();\n        __syncthreads();", "<stages - 2>();"),
    "no barrier between peaks and their use": Fault(
        "    __syncthreads();\n    Pair result;", "    Pair result;", sanitize="thread"
    ),
    "no barrier before the records": Fault("    __syncthreads();\n    write_outputs", "    write_outputs"),
    "one token too many": Fault(
        "highest + 1 - start < exl_page_size ? highest + 1", "highest + 2 - start < exl_page_size ? highest + 2"
    ),
    "one token too few in the window": Fault(
        "lowest - window + 1 : 0;\n    const int end", "lowest - window + 2 : 0;\n    const int end"
    ),
    "the last copy left out": Fault("at < count * row)", "at < count * row - 16)"),
    "misaligned rows": Fault("% 2 == 0 ? 16 : 0", "% 2 == 0 ? 8 : 0"),
    "scales of nobody's tokens": Fault("token < count ? scales", "true ? scales", PACKED),
    "no ticket": Fault(
        "if (!last_block_arrives(&args.tickets[blockIdx.x * gridDim.y + blockIdx.y], gridDim.z))",
        "if (blockIdx.z > 0)", splits=3, order="forward",
    ),
    "pages merged out of order": Fault(
        "partial_of(args, tile, vector, page, dim);\n        const float peak",
        "partial_of(args, tile, vector, last - page, dim);\n        const float peak", splits=2, rows=MANY_ROWS,
    ),
}  # fmt: skip


def whole(path: Path, seen: set[str]) -> str:
    """The text of a file with attention's headers in place of their #include lines, each once."""

    def include(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return whole(KERNELS / match[1], seen)

    text = path.read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(r'#include "(attention/[\w.]+)"', include, text)


def planted(name: str, fault: Fault) -> Path:
    """The library of the kernels with a fault."""
    text = whole(KERNELS / "attention" / "attention.cu", set())
    # Heads of 64 are enough.
    text = re.sub(r"(case \d+|default): return launch<(?!64)\d+, \w+>\(args, geometry, stream\);", "", text)
    assert not fault.old or text.count(fault.old) == 1, f"the place for {name!r} is there {text.count(fault.old)} times"
    source = CACHE / "faults" / f"{re.sub(r'[^a-z]+', '_', name)}.cu"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text.replace(fault.old, fault.new) if fault.old else text, encoding="utf-8")
    sources = [source, KERNELS / "cache" / "cache.cu"]
    return build_emulator(CACHE, EmulatorBuild(f"fault_{source.stem}", sources, sanitize=fault.sanitize))


def is_right(library: Library, fault: Fault) -> bool:
    """Right values, and the same bits of every row alone."""
    sequences = Sequences(library, fault.shape, LENGTHS)
    library.configure(fault.order, seed=3, workers=2)
    try:
        found = sequences.attend(fault.rows, fault.splits)
        alone = np.concatenate([sequences.attend([row]) for row in fault.rows])
    except (KernelError, AssertionError):
        return False
    return sequences.error(fault.rows, found) <= BOUND and np.array_equal(found, alone)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.sanitize])
def test_planted_faults_are_found(name: str) -> None:
    fault = FAULTS[name]
    assert is_right(Library(planted(name, fault)), fault) == name.startswith("none")


@pytest.mark.skipif(bool(SANITIZE), reason="runs outside the process that it starts")
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.sanitize])
def test_sanitizers_find_what_is_planted(name: str) -> None:
    """A missing barrier that groups of lanes in step do not need, and a kernel without faults."""
    fault = FAULTS[name]
    library = planted(name, fault)
    code = f"""
from tests.kernels import test_attention_faults as faults
library = faults.Library(faults.Path({str(library)!r}))
print("right:", faults.is_right(library, faults.FAULTS[{name!r}]))
"""
    done = run(fault.sanitize, [sys.executable, "-c", code])
    text = done.stdout + done.stderr
    reported = re.search("WARNING: ThreadSanitizer: data race|ERROR: AddressSanitizer|runtime error:", text)
    assert (reported is None) == name.startswith("none"), text[-3000:]
    assert "right:" in text, text[-3000:]
