"""Native code under sanitizers: threads, packing, sampling, linear layers, attention. Each run must be able to fail.

Kernels are compiled for one level and without optimisation, which takes seconds instead of minutes; all levels:
`python -m exllama_ext.build cpu --debug`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from exllama.ops import native
from exllama_ext.build import CPU, LEVELS
from tests.unit.tree import ROOT

NATIVE = Path(__file__).parent
FLAGS = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", f"-I{ROOT / 'kernels'}", "-pthread"]
BOUNDS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def build(program: Path, flags: list[str], *sources: Path) -> Path:
    compiler = shutil.which("g++")
    assert compiler, "the tests need the compiler that the kernels need"
    command = [compiler, *FLAGS, *flags, *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Without address randomisation, which older thread sanitizers cannot cope with."""
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*fixed, str(program), *words], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


def test_threads_have_no_data_race(folder: Path) -> None:
    program = build(folder / "team", ["-fsanitize=thread"], NATIVE / "team.cpp", CPU / "team.cpp")
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "every sum is right\n"), done.stderr[:4000]
    assert "data race" in run(program, "unguarded").stderr


def test_storage_stays_within_bounds(folder: Path) -> None:
    sources = [CPU / name for name in ("team.cpp", "pack.cpp", "sampling.cpp")]
    program = build(folder / "storage", BOUNDS, NATIVE / "storage.cpp", NATIVE / "exact_memory.cpp", *sources)
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "all is within bounds\n"), done.stderr[:4000]
    assert "ERROR: AddressSanitizer" in run(program, "short").stderr


def test_linear_layers_and_attention_stay_within_bounds(folder: Path) -> None:
    level = "avx2" if "avx2" in native().levels() else "generic"
    flags = ["-O0", *LEVELS[level], f"-DEXL_ISA={level}", f"-DEXL_LEVEL={list(LEVELS).index(level)}", *BOUNDS]
    sources = [CPU / name for name in ("team.cpp", "pack.cpp")]
    program = build(folder / "compute", flags, NATIVE / "compute.cpp", NATIVE / "exact_memory.cpp", *sources)
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "all is within bounds\n"), done.stderr[:4000]
    for kernel in ("linear", "attention"):
        assert f"{level}::{kernel}" in run(program, kernel).stderr
