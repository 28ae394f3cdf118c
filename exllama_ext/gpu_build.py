"""Builds the GPU sources for real GPUs: libexllama_cuda.so and libexllama_hip.so, C ABI, no torch, no Python.

One library serves every GPU of its vendor: it holds machine code for each architecture in the list, compressed, and for
NVIDIA intermediate code for newer ones. Nothing but the vendor's runtime is linked; CUDA's is linked in.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exllama_ext.emulator_build import KERNELS, gpu_sources, native_files
from exllama_ext.toolchains import find_cuda, find_rocm
from exllama_ext.tools import BuildFailed, Progress, digest, locked, publish, run_ninja, version_of, write_ninja

# sm_120 serves 12.1 too; an `a` serves exactly that chip and unlocks its own instructions.
CUDA_ARCHS = ("75", "80", "86", "89", "90a", "100a", "103a", "110a", "120")
HIP_ARCHS = ("gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1151", "gfx1200", "gfx1201")
INCLUDE = f"-I{KERNELS / 'include'} -I{KERNELS}"


@dataclass(frozen=True)
class GpuBuild:
    """One library. archs: "90a" or "sm_90a" for CUDA, "gfx1100" for HIP; empty: all. sources: empty: the project's."""

    backend: str
    archs: Sequence[str] = ()
    sources: Sequence[Path] = ()
    name: str = ""

    @property
    def library(self) -> str:
        return f"lib{self.name or f'exllama_{self.backend}'}.so"


def cuda_flags(archs: Sequence[str]) -> list[str]:
    """-gencode for each architecture, and intermediate code of the newest for GPUs to come."""
    names = [arch.removeprefix("sm_") for arch in archs or CUDA_ARCHS]
    if wrong := [name for name in names if not re.fullmatch(r"\d{2,3}[af]?", name)]:
        raise BuildFailed(f"{wrong[0]!r} is no CUDA architecture, expected a form like 86, sm_89 or 90a")
    flags = [f"-gencode arch=compute_{name},code=sm_{name}" for name in names]
    if not archs:
        flags[-1] = f"-gencode arch=compute_{names[-1]},code=[sm_{names[-1]},compute_{names[-1]}]"
    return flags


def cuda_archs_here() -> list[str]:
    """The architectures of this machine's NVIDIA GPUs as the driver's tool names them; empty if it does not say."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = {line.strip().replace(".", "") for line in told.splitlines() if re.fullmatch(r"\s*\d+\.\d\s*", line)}
    own = {arch.rstrip("af"): arch for arch in CUDA_ARCHS}  # with the letter that unlocks a chip's own instructions
    return sorted(own.get(number, number) for number in found)


def cuda_commands(archs: Sequence[str]) -> tuple[str, str, str]:
    """(compile, link, version) for nvcc."""
    toolkit = find_cuda()
    flags = ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler -fPIC,-fvisibility=hidden", "--compress-mode=size"]
    flags += cuda_flags(archs)
    compile_one = f"{toolkit.nvcc} {' '.join(flags)} {INCLUDE} -MD -MF $out.d -c $in -o $out"
    libraries = f"-L{toolkit.root / 'lib'} -L{toolkit.root / 'lib64'}"
    return compile_one, f"{toolkit.nvcc} -shared -cudart static {libraries} $in -o $out", version_of(str(toolkit.nvcc))


def hip_commands(archs: Sequence[str]) -> tuple[str, str, str]:
    """(compile, link, version) for clang."""
    rocm = find_rocm()
    if wrong := [arch for arch in archs if not re.fullmatch(r"gfx[0-9a-f]{3,4}", arch)]:
        raise BuildFailed(f"{wrong[0]!r} is no AMD architecture, expected a form like gfx1100")
    targets = [f"--offload-arch={arch}" for arch in archs or HIP_ARCHS]
    where = [f"--rocm-path={rocm.root}", f"--rocm-device-lib-path={rocm.device_libraries}"]
    flags = [*targets, *where, "-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-D__HIP_PLATFORM_AMD__"]
    compile_one = f"{rocm.clang} -x hip {' '.join(flags)} {INCLUDE} -MD -MF $out.d -c $in -o $out"
    link = f"{rocm.clang} --hip-link -shared {' '.join([*targets, *where])} $in -lamdhip64 -o $out"
    return compile_one, link, version_of(rocm.clang)


def build_gpu(cache: Path, build: GpuBuild, progress: Progress | None = None) -> Path:
    """The library, built unless the cache has it for these sources, flags and compiler. Raises BuildFailed."""
    commands = {"cuda": cuda_commands, "hip": hip_commands}[build.backend](build.archs)
    runtime = [KERNELS / "runtime" / name for name in ("runtime.cu", "status.cu")]
    sources = [*build.sources, *runtime] if build.sources else gpu_sources()
    library = cache / "native" / digest([*native_files(), *build.sources], *commands, build.library) / build.library
    if library.is_file():
        return library
    compile_one, link, _ = commands
    folder = cache / "objects" / f"{library.stem}-{digest([], *commands)}"
    with locked(folder):
        write_ninja(folder, compile_one, sources, library.name, link)
        run_ninja(folder, library.name, progress)
        publish(folder / library.name, library)
    return library
