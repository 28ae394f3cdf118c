"""Builds the GPU sources for the CPU emulator: libexllama_emu.so, and libraries of test kernels.

Needs a C++20 compiler with _Float16 (g++ >= 12 or clang >= 15) and ninja; no GPU, no CUDA.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exllama_ext.tools import (
    ROOT,
    Progress,
    digest,
    host_compiler,
    locked,
    publish,
    run_ninja,
    version_of,
    write_ninja,
)

KERNELS = ROOT / "kernels"
# Folders of kernels/ that hold no GPU sources.
NOT_GPU = ("cpu", "emulator", "include", "layouts")
# What the emulator has its own of.
VENDOR_SOURCES = ("runtime/runtime.cu",)

FLAGS = [
    "-DEXL_EMU",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
WATCHED = ["-O1", "-g", "-fno-omit-frame-pointer"]
SANITIZE = {
    "": ["-O2"],
    "address": [*WATCHED, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": [*WATCHED, "-fsanitize=thread"],
}
# Under ThreadSanitizer the emulator itself stays unwatched: its bookkeeping is no race of the kernel.
SANITIZE_EMULATOR = {"": ["-O3"], "address": SANITIZE["address"], "thread": ["-O2", "-g", "-DEXL_TSAN"]}


@dataclass(frozen=True)
class EmulatorBuild:
    """What to build: which sources for which waves, watched by which sanitizer.

    sources: the .cu files; empty: all of the project's. sanitize: "", "address" (and undefined behaviour) or "thread".
    """

    name: str = "exllama_emu"
    sources: Sequence[Path] = ()
    warp_size: int = 32
    sanitize: str = ""
    defines: Sequence[str] = field(default_factory=tuple)

    @property
    def flags(self) -> list[str]:
        """What the kernels and the emulator are both compiled with."""
        return [*FLAGS, *machine_flags(), f"-DEXL_EMU_WARP_SIZE={self.warp_size}"]


def gpu_sources() -> list[Path]:
    """Every .cu file of the project."""
    return sorted(path for path in KERNELS.glob("*/*.cu") if path.parent.name not in NOT_GPU)


def emulator_sources(build: EmulatorBuild) -> list[Path]:
    """The .cu files of a build and, always, the runtime's status."""
    if build.sources:
        return [*build.sources, KERNELS / "runtime" / "status.cu"]
    vendor = {KERNELS / name for name in VENDOR_SOURCES}
    return [path for path in gpu_sources() if path not in vendor]


def native_files() -> list[Path]:
    """What a GPU library is made of: every source and header but those of the CPU kernels."""
    found = [path for suffix in ("cu", "cuh", "h", "cpp") for path in KERNELS.rglob(f"*.{suffix}")]
    return [path for path in found if path.parent != KERNELS / "cpu"]


def machine_flags() -> list[str]:
    """Hardware conversions of half, where the machine that builds (and runs) has them."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [f"-m{name}" for name in ("f16c", "avx2", "fma") if name in words]


def compile_command(flags: list[str]) -> str:
    """ninja's command for one source."""
    include = f"-I{KERNELS / 'include'} -I{KERNELS}"
    return f"{host_compiler()} -x c++ {' '.join(flags)} {include} -MMD -MF $out.d -c $in -o $out"


def build_archive(cache: Path, build: EmulatorBuild, progress: Progress | None) -> Path:
    """The emulator itself, which all libraries with the same waves and sanitizer share."""
    target = cache / "objects" / f"emulator-{build.warp_size}-{build.sanitize or 'plain'}" / "emulator.a"
    with locked(target.parent):
        flags = [*build.flags, "-std=c++20", *SANITIZE_EMULATOR[build.sanitize]]
        sources = sorted((KERNELS / "emulator").glob("*.cpp"))
        write_ninja(target.parent, compile_command(flags), sources, target.name, "rm -f $out && ar rcs $out $in")
        run_ninja(target.parent, "the emulator", progress)
    return target


def build_emulator(cache: Path, build: EmulatorBuild | None = None, progress: Progress | None = None) -> Path:
    """The library, built unless the cache has it for these sources, flags and compiler.

    cache: the folder of all builds. Raises BuildFailed.
    """
    build = build or EmulatorBuild()
    watched = SANITIZE[build.sanitize]
    flags = [*build.flags, "-std=c++17", *watched, *(f"-D{name}" for name in build.defines)]
    files = [*native_files(), *build.sources]
    key = digest(files, *flags, *SANITIZE_EMULATOR[build.sanitize], build.name, version_of(host_compiler()))
    library = cache / "native" / key / f"lib{build.name}.so"
    if library.is_file():
        return library
    archive = build_archive(cache, build, progress)
    folder = cache / "objects" / f"{build.name}-{digest([], *flags)}"
    with locked(folder):
        sanitizers = " ".join(flag for flag in watched if flag.startswith("-fsanitize"))
        whole = f"-Wl,--whole-archive {archive} -Wl,--no-whole-archive"
        link = f"{host_compiler()} -shared $in {whole} -o $out -pthread {sanitizers}"
        write_ninja(folder, compile_command(flags), emulator_sources(build), library.name, link, [archive])
        run_ninja(folder, library.name, progress)
        publish(folder / library.name, library)
    return library
