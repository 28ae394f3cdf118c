"""Each defect that a kernel can have is planted, and the tool that is meant to find it must report it.

A defect that leaves a poisoned value shows in every order of threads. The kernels without a defect must stay silent.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.kernels.defect_runner import GLOBAL_OUT_OF_BOUNDS
from tests.kernels.library import ORDERS, SOURCES, emulated
from tests.kernels.sanitizers import run

NAMES = re.findall(
    r"^    (\w+),",
    re.findall(r"enum class Defect \{(.*?)\};", (SOURCES / "defects.cu").read_text(encoding="utf-8"), re.DOTALL)[0],
    re.MULTILINE,
)
# defect, sanitizer, lanes of a wave, what is reported: by the emulator as the text of the failed launch, by a sanitizer
# on stderr, or as NaN in the result.
REPORTS = [
    ("no_wait", "", 32, "never waited for"),
    ("no_sync_before_read", "", 32, "^nan$"),
    ("no_sync_after_read", "", 32, "^nan$"),
    ("shared_out_of_bounds", "", 32, "^nan$"),
    ("misaligned_row", "", 32, "not a multiple of 16 bytes"),
    ("half_wave", "", 64, r"(?s)deadlock.* wait in mma_f16"),
    ("no_sync_before_reduce", "", 32, "^nan$"),
    ("divergent_shuffle", "", 32, r"(?s)deadlock.*124 threads wait in shuffle"),
    ("early_exit", "", 32, r"shuffle waits for lanes that have left|(?s:deadlock.*4 threads wait in shuffle)"),
    ("other_barrier", "", 32, r"different barriers: __syncthreads at .*defects.cu:\d+, and .*defects.cu:\d+"),
    ("no_sync_warp", "", 32, "^nan$"),
    ("misaligned_store", "", 32, "out of reach .* or of 16 bytes at an address that is not a multiple"),
    ("global_out_of_bounds", "", 32, "a write 0 bytes behind the end of an allocation of 7936 bytes"),
    ("shared_out_of_bounds", "address", 32, "AddressSanitizer|runtime error: index"),
    ("misaligned_store", "address", 32, "store to misaligned address"),
    ("global_out_of_bounds", "address", 32, "heap-buffer-overflow"),
    ("no_sync_before_read", "thread", 32, "data race"),
    ("no_sync_after_read", "thread", 32, "data race"),
    ("no_sync_before_reduce", "thread", 32, "data race"),
    ("no_sync_warp", "thread", 32, "data race"),
    ("no_atomic", "thread", 32, "data race"),
    ("no_ticket", "thread", 32, "data race"),
]


def report(defect: str, sanitize: str, warp_size: int, order: str) -> str:
    """All that a run with the defect says."""
    library = emulated("defects", warp_size=warp_size, sanitize=sanitize)
    runner = str(Path(__file__).with_name("defect_runner.py"))
    arguments = [str(library), str(NAMES.index(defect)), str(ORDERS[order]), "2"]
    done = run(sanitize, [sys.executable, runner, *arguments], timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("defect", "sanitize", "warp_size", "expected"),
    REPORTS,
    ids=[f"{defect}-{sanitize or 'emulator'}" for defect, sanitize, _, _ in REPORTS],
)
def test_a_planted_defect_is_reported(defect: str, sanitize: str, warp_size: int, expected: str) -> None:
    for order in ORDERS if not sanitize else ["forward"]:
        text = report(defect, sanitize, warp_size, order)
        assert re.search(expected, text, re.MULTILINE), f"{order}: {text}"


@pytest.mark.parametrize("sanitize", ["", "address", "thread"], ids=["emulator", "address", "thread"])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_kernels_without_a_defect_are_silent(sanitize: str, warp_size: int) -> None:
    for order in ORDERS:
        assert report("none", sanitize, warp_size, order) == "0 \nfinite\n"


def test_each_defect_has_a_tool() -> None:
    assert {defect for defect, *_ in REPORTS} == {*NAMES} - {"none"}
    assert NAMES.index("global_out_of_bounds") == GLOBAL_OUT_OF_BOUNDS
