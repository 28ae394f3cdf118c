"""Sources compile for both vendors: wrappers for every architecture, kernels for one; the result loads without a GPU.

A machine without the compilers shows why in the summary: `make test` installs them where it may.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from exllama_ext.gpu_build import CUDA_ARCHS, HIP_ARCHS, INCLUDE, GpuBuild, build_gpu
from exllama_ext.toolchains import find_cuda, find_rocm
from exllama_ext.tools import BuildFailed
from tests.kernels.library import CACHE, SANITIZE, SOURCES
from tests.kernels.machine_code import architectures, instructions, resources

WRAPPERS = [SOURCES / "wrappers.cu"]
NO_DRIVER = 9
pytestmark = pytest.mark.skipif(bool(SANITIZE), reason="compilers are not run under a sanitizer")


# The kernels themselves for one architecture a vendor, a minute each; all of them, in many minutes, are compiled by
# `python -m exllama_ext.build cuda` and `hip`.
PROJECT_ARCHS = {"cuda": ("80",), "hip": ("gfx1100",)}


def build(backend: str, sources: list[Path], name: str) -> Path:
    try:
        (find_cuda if backend == "cuda" else find_rocm)()
    except BuildFailed as missing:
        pytest.skip(f"NOTICE: {backend} is not compiled on this machine: {missing}")
    return build_gpu(CACHE, GpuBuild(backend, () if sources else PROJECT_ARCHS[backend], sources, name))


@pytest.mark.parametrize("backend", ["cuda", "hip"])
@pytest.mark.parametrize(("sources", "name"), [(WRAPPERS, "test_{}"), ([], "")], ids=["wrappers", "project"])
def test_the_sources_compile_and_the_library_loads(backend: str, sources: list[Path], name: str) -> None:
    library = build(backend, sources, name.format(backend))
    content = library.read_bytes()
    if backend == "hip":
        for arch in HIP_ARCHS if sources else PROJECT_ARCHS["hip"]:
            assert f"amdgcn-amd-amdhsa--{arch}".encode() in content
    handle = ctypes.CDLL(str(library))
    handle.exl_backend.restype = handle.exl_last_error.restype = ctypes.c_char_p
    assert handle.exl_backend() == backend.encode()
    count = ctypes.c_int32(-1)
    status = handle.exl_device_count(ctypes.byref(count))
    if status:
        assert (status, count.value) == (NO_DRIVER, 0)
        assert handle.exl_last_error()
    exported = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True).stdout
    strange = [
        name for name in re.findall(r" [TDB] (\w+)", exported) if not re.match(r"exl_|test_|__hip_|_init|_fini", name)
    ]
    assert strange == []


def test_cuda_code_of_every_architecture_is_in_the_library() -> None:
    library = build("cuda", WRAPPERS, "test_cuda")
    assert architectures(library) == {f"sm_{arch}" for arch in CUDA_ARCHS}


def test_no_wrapper_needs_a_stack() -> None:
    used = resources(build("cuda", WRAPPERS, "test_cuda"))
    assert {arch for arch, _ in used} == {f"sm_{arch}" for arch in CUDA_ARCHS}
    assert {key: use for key, use in used.items() if use["STACK"] or use["LOCAL"]} == {}


MATRIX = {"LDSM.16.M88", "LDSM.16.M88.2", "LDSM.16.M88.4", "LDSM.16.MT88", "LDSM.16.MT88.2", "LDSM.16.MT88.4"}
AMPERE = {
    "HMMA.16816.F32", "HMMA.16816.F32.BF16", "IMMA.16832.S8.S8", "IMMA.16832.U8.S8", "LDGSTS.E.BYPASS.128", "LDGDEPBAR",
}  # fmt: skip
DOT = {"IDP.4A.S8.S8", "IDP.4A.U8.S8"}
HOPPER = {"ACQBULK", "PREEXIT"}


@pytest.mark.parametrize(
    ("arch", "wanted", "unwanted"),
    [
        ("sm_75", {"HMMA.1688.F32", "IMMA.8816.S8.S8", "IMMA.8816.U8.S8"} | MATRIX | DOT, AMPERE | HOPPER),
        ("sm_80", AMPERE | MATRIX | DOT, HOPPER),
        ("sm_90a", AMPERE | MATRIX | DOT | HOPPER, set()),
        ("sm_120", AMPERE | MATRIX | DOT | HOPPER, set()),
    ],
)
def test_wrappers_become_the_instruction_they_are_for(arch: str, wanted: set[str], unwanted: set[str]) -> None:
    functions = instructions(build("cuda", WRAPPERS, "test_cuda"), arch)
    found = {name for counts in functions.values() for name in counts}
    assert wanted - found == set()
    assert unwanted & found == set()


@pytest.mark.parametrize("arch", ["87", "88", "110", "121"])
def test_other_cuda_architectures_compile(arch: str, tmp_path: Path) -> None:
    """Those that the library serves by a relative's code."""
    try:
        nvcc = find_cuda().nvcc
    except BuildFailed as missing:
        pytest.skip(f"NOTICE: cuda is not compiled on this machine: {missing}")
    command = [str(nvcc), "-std=c++17", f"-arch=sm_{arch}", *INCLUDE.split(), "-cubin", str(WRAPPERS[0])]
    done = subprocess.run([*command, "-o", str(tmp_path / "x.cubin")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("backend", "arch"), [("cuda", "pascal"), ("hip", "sm_90")])
def test_a_wrong_architecture_is_named(backend: str, arch: str) -> None:
    try:
        (find_cuda if backend == "cuda" else find_rocm)()
    except BuildFailed as missing:
        pytest.skip(f"NOTICE: {backend} is not compiled on this machine: {missing}")
    with pytest.raises(BuildFailed, match=f"'{arch}' is no .* architecture"):
        build_gpu(CACHE, GpuBuild(backend, [arch]))
