"""Starting a Python process whose kernels are watched by a sanitizer of the compiler that built them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from exllama_ext.tools import ROOT, host_compiler

RUNTIMES = {"": (), "address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
OPTIONS = {
    # Python does not give back all it has at its end. A signal handler of our own would hide what ASan says.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=0 report_signal_unsafe=0",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's library synchronises in ways that TSan does not see
}


def preloaded(sanitize: str) -> str:
    """The sanitizer's runtimes, which must be in the process before Python allocates anything."""
    found = []
    for name in RUNTIMES[sanitize]:
        command = [*host_compiler().split(), f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_absolute():
            pytest.fail(f"the compiler has no {name}: install its sanitizer runtimes (Debian: they come with g++)")
        found.append(path)
    return " ".join(found)


def run(sanitize: str, command: Sequence[str], timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs a command with the sanitizer's runtime in it; TSan needs memory at addresses that it knows."""
    fixed = [shutil.which("setarch") or "setarch", "-R"] if sanitize == "thread" else []
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": preloaded(sanitize), "EXL_TEST_SANITIZE": sanitize}
    return subprocess.run(
        [*fixed, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
