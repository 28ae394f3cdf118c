"""The kernel tests once more, with the kernels under AddressSanitizer and UBSan, then under ThreadSanitizer."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.kernels.library import SANITIZE, emulated
from tests.kernels.sanitizers import run

HERE = Path(__file__).parent
# Test files whose kernels a sanitizer watches. They run in random order of threads alone.
WATCHED = ["test_scale.py", "test_wrappers.py"]


@pytest.mark.skipif(bool(SANITIZE), reason="runs outside the process that it starts")
@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_kernels_are_clean(sanitize: str) -> None:
    files = [str(HERE / name) for name in WATCHED]
    # Built before the sanitizer's runtime is loaded into the compilers as well.
    for source in ("scale", "wrappers"):
        for warp_size in (32, 64):
            emulated(source, warp_size=warp_size, sanitize=sanitize)
    # A sanitizer writes past sys.stderr, so capturing stops at that.
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--capture=sys"]
    done = run(sanitize, [sys.executable, "-m", "pytest", *options, *files])
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-6000:]
    assert not re.search("WARNING: ThreadSanitizer|ERROR: AddressSanitizer|runtime error:", text), text[-6000:]
    assert re.search(r"^\d+ passed", text, re.MULTILINE), text[-6000:]
