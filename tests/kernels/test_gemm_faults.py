"""Faults planted into the matrix products, each of which the emulator or a comparison catches.

A copy of kernels/gemm with one line changed is compiled for one format. The unchanged copy passes the same check, so it
is the fault that is caught. Under the compiler's sanitizers a trellis is multiplied as well.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from exllama_ext.emulator_build import KERNELS, EmulatorBuild, build_emulator
from tests.kernels import test_trellis
from tests.kernels.gemm import Product, check_product
from tests.kernels.library import CACHE, SANITIZE, KernelError, Library
from tests.kernels.sanitizers import run
from tests.kernels.test_group_affine import OPERATION, activations
from tests.kernels.weights import exact_values, pack, raw_rows

SOURCES = ("linear.cu", "group_affine.cu", "group_affine_flat.cu", "group_affine_pack.cu")
TRELLIS = ("trellis.cu", "trellis_bytes.cu")
# File, text, what stands there instead, and what the failure says.
FAULTS = {
    "none": ("products.cuh", "", "", ""),
    "missing barrier": ("products.cuh", "__syncthreads();", "sync_warp();", "values"),
    "missing wait": ("products.cuh", "copy_async_wait<P::stages - 2>();", "", "values"),
    "missing order in a group": ("products.cuh", "} else {\n                    sync_warp();", "} else {", "values"),
    "column guard off by one": ("products.cuh", "columns > 0 &&", "columns >= 0 &&", "values"),
    "row guard off by one": (
        "outputs.cuh",
        "if (token >= problem.rows ||",
        "if (token > problem.rows ||",
        "behind the end",
    ),
    "misaligned row": ("products.cuh", "step_columns * 2 + 32;", "step_columns * 2 + 36;", "not a multiple of 16"),
    "slice lost": ("outputs.cuh", "slice < slices", "slice < slices - 1", "values"),
    "block that is not the last adds": (
        "outputs.cuh",
        "slices))) return false;",
        "slices) - 1)) return false;",
        "values",
    ),
}


def plant(folder: Path, fault: str, sources: tuple[str, ...] = SOURCES) -> list[Path]:
    """A copy of the sources with the fault and few formats, which find each other before the originals."""
    copy = folder / "gemm"
    shutil.copytree(KERNELS / "gemm", copy)
    (copy / "gemm").symlink_to(".")
    formats = copy / "group_affine_launch.h"
    only = "\n#undef EXL_FLAT_FORMATS\n#undef EXL_SUPER_FORMATS\n#define EXL_FLAT_FORMATS(f) f(4, exl_symmetric)\n"
    formats.write_text(formats.read_text() + only + "#define EXL_SUPER_FORMATS(f)\n")
    bytes_table = copy / "trellis_bytes.cu"
    few = re.sub(r"entries\[\] = \{.*?\};", "entries[] = {EXL_TRELLIS(8, true)};", bytes_table.read_text(), flags=re.S)
    none = "namespace exl::gemm {\nconst TrellisEntry* find_sum_of_halves(int) { return nullptr; }\n}\n"
    bytes_table.write_text(few + none)
    name, good, bad, _ = FAULTS[fault]
    text = (copy / name).read_text()
    assert good in text, "the line that the fault changes is gone"
    text = text.replace(good, bad).replace("static_assert(row_bytes % 128 == 32", "static_assert(row_bytes > 0")
    (copy / name).write_text(text)
    return [copy / source for source in sources]


@pytest.mark.skipif(bool(SANITIZE), reason="the faults are for the emulator itself to catch")
@pytest.mark.parametrize("fault", list(FAULTS))
def test_planted_faults(fault: str, tmp_path: Path) -> None:
    name = f"fault_{fault.replace(' ', '_')}"
    library = Library(build_emulator(CACHE, EmulatorBuild(name, plant(tmp_path, fault))))
    caught = ""
    for order in ("forward", "reverse", "random"):
        library.configure(order, seed=3, workers=2)
        caught = caught or failure(library)
    library.configure()
    assert FAULTS[fault][3] in caught
    assert bool(caught) == (fault != "none"), caught


@pytest.mark.skipif(bool(SANITIZE), reason="runs outside the process that it starts")
@pytest.mark.parametrize(
    ("sanitize", "fault"), [("address", "none"), ("thread", "none"), ("thread", "missing barrier")]
)
def test_sanitizers(sanitize: str, fault: str, tmp_path: Path) -> None:
    """They are silent about the products, and see a missing barrier in whatever order threads run."""
    build = EmulatorBuild(f"watched_{fault[:4]}", plant(tmp_path, fault, SOURCES + TRELLIS), sanitize=sanitize)
    library = build_emulator(CACHE, build)
    done = run(sanitize, [sys.executable, "-c", WATCHED.format(path=str(library))])
    text = done.stdout + done.stderr
    reported = re.search("WARNING: ThreadSanitizer: data race|ERROR: AddressSanitizer|runtime error:", text)
    assert (reported is None) == (fault == "none"), text[-3000:]
    assert "products:" in text, text[-3000:]
    assert fault != "none" or "products: ''" in text, text[-3000:]


WATCHED = """
from pathlib import Path
from tests.kernels import test_gemm_faults as faults
library = faults.Library(Path({path!r}))
library.configure("random", seed=3, workers=2)
print("products:", repr(faults.failure(library) + faults.failure_of_a_trellis(library)))
"""


def failure_of_a_trellis(library: Library) -> str:
    """The same with a matrix that is rotated, of 9 rows."""
    matrix = test_trellis.Matrix((130, 1024))
    x = test_trellis.activations(1, 9, 1024)
    try:
        (found,) = test_trellis.Product([matrix]).run(library, x)
        test_trellis.check(found, x[0], matrix)
        library.free()
    except KernelError as error:
        return error.text
    except AssertionError as error:
        return f"values: {error}"
    return ""


def failure(library: Library) -> str:
    """What is wrong with a product of 3 rows over several slices; "" if nothing is."""
    cols = 32 * 37
    raw = raw_rows("Q4_0", (40, cols))
    x = activations(3, cols)
    try:
        (found,) = Product([pack(library, "Q4_0", raw, cols)]).run(library, OPERATION, x)
        check_product(found, x, exact_values("Q4_0", raw), slack=2.0**-18)
        assert np.isfinite(found).all()
        library.free()
    except KernelError as error:
        return error.text
    except AssertionError as error:
        return f"values: {error}"
    return ""
