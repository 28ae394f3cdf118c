"""Builds the native module: the one list of sources and flags, for wheels and for working in place.

    python -m exllama_ext.build cpu [--out FOLDER] [--debug]
    python -m exllama_ext.build emu [--out FOLDER] [--warp-size 64] [--sanitize address|thread]
    python -m exllama_ext.build cuda [--out FOLDER] [--arch 90a ...]
    python -m exllama_ext.build hip [--out FOLDER] [--arch gfx1100 ...]

cpu: every kernel file of a CPU level is compiled with that level's flags; the level is chosen at run time.
Needs a C++20 compiler (g++ >= 11 or clang >= 14), ninja and pybind11.
emu, cuda, hip: the GPU kernels for the CPU emulator (emulator_build.py) and for GPUs (gpu_build.py). Nothing here
knows torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from exllama_ext.emulator_build import EmulatorBuild, build_emulator
from exllama_ext.gpu_build import GpuBuild, build_gpu
from exllama_ext.tools import ROOT, BuildFailed, host_compiler, locked, run_ninja, show_progress

CPU = ROOT / "kernels" / "cpu"

COMMON_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mprefer-vector-width=512"]
BF16 = ["-mavx512bf16", "-mavx512vbmi2"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# gcc 12 warns about its own AVX-512 headers.
QUIET = ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
LEVELS: dict[str, list[str]] = {
    "generic": [],
    "avx2": AVX2,
    "avx512": AVX2 + AVX512 + QUIET,
    "avx512_bf16": [*AVX2, *AVX512, *BF16, *QUIET],
    "amx": [*AVX2, *AVX512, *BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16", *QUIET],
}
LEVEL_SOURCES = ["level.cpp", "trellis.cpp", "trellis_step.cpp"]
PLAIN_SOURCES = [
    "team.cpp", "memory.cpp", "pack.cpp", "trellis_pack.cpp", "plan.cpp", "dispatch.cpp", "limits.cpp", "sampling.cpp",
    "trellis_search.cpp", "block_ldl.cpp",
]  # fmt: skip

BINDING_SOURCES = ["bindings.cpp", "quantize_bindings.cpp"]

# The GPU half of the module, in exllama_ext/gpu: it opens the GPU libraries at run time.
GPU_SOURCES = ["library.cpp", "plan.cpp", "bindings.cpp"]


def levels() -> list[str]:
    """CPU levels that this machine's compiler can build."""
    return list(LEVELS) if platform.machine().lower() in ("x86_64", "amd64") else ["generic"]


def _pybind11_include() -> str:
    """Of pybind11, else the copy that torch brings along."""
    try:
        import pybind11

        return str(pybind11.get_include())
    except ImportError as error:
        torch = importlib.util.find_spec("torch")
        beside = Path(torch.origin).parent / "include" if torch and torch.origin else ROOT
        if (beside / "pybind11" / "pybind11.h").exists():
            return str(beside)
        raise BuildFailed("the Python package pybind11 was not found: pip install pybind11") from error


def module_name() -> str:
    return "_C" + str(sysconfig.get_config_var("EXT_SUFFIX"))


def write_ninja(build_dir: Path, target: Path, extra: list[str]) -> None:
    """One rule, one line per object file."""
    flags = " ".join([*COMMON_FLAGS, *extra])
    include = f"-isystem {_pybind11_include()} -isystem {sysconfig.get_paths()['include']} -I{ROOT / 'kernels'}"
    lines = [
        f"cxx = {host_compiler()}",
        "rule compile",
        f"  command = $cxx {flags} $flags {include} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link",
        # Under another name until it is whole: a half-written module may load, and compute nonsense.
        "  command = $cxx -shared $in -o $out.partial -pthread && mv -f $out.partial $out",
        "  description = link $out",
    ]
    objects = []

    def add(source: Path, obj: str, flags: str = "") -> None:
        objects.append(obj)
        lines.append(f"build {obj}: compile {source}")
        if flags:
            lines.append(f"  flags = {flags}")

    for order, level in enumerate(LEVELS):
        if level in levels():
            for name in LEVEL_SOURCES:
                defines = [f"-DEXL_LEVEL={order}", f"-DEXL_ISA={level}"]
                add(CPU / name, name.replace(".cpp", f"_{level}.o"), " ".join([*defines, *LEVELS[level]]))
    for name in PLAIN_SOURCES:
        add(CPU / name, name.replace(".cpp", ".o"))
    for name in BINDING_SOURCES:
        add(ROOT / "exllama_ext" / name, name.replace(".cpp", ".o"))
    for name in GPU_SOURCES:
        source = ROOT / "exllama_ext" / "gpu" / name
        add(source, f"gpu_{source.stem}.o", f"-DEXL_HOST -I{ROOT / 'kernels' / 'include'}")
    lines.append(f"build {target}: link {' '.join(objects)}")
    (build_dir / "build.ninja").write_text("\n".join(lines) + "\n")


def build_cpu(out_dir: Path, debug: bool = False) -> Path:
    """Builds `_C` into out_dir and returns its path; does nothing when it is up to date. Raises BuildFailed."""
    build_dir = (
        ROOT / "build" / ("cpu-debug" if debug else "cpu") / f"cp{sys.version_info.major}{sys.version_info.minor}"
    )
    target = out_dir.resolve() / module_name()
    sanitize = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if debug else []
    with locked(build_dir):
        write_ninja(build_dir, target, sanitize)
        run_ninja(build_dir, target.name, show_progress)
    return target


def build_library(arguments: argparse.Namespace) -> Path:
    """The library of the GPU kernels that the command line asks for. Raises BuildFailed."""
    if arguments.backend != "emu":
        return build_gpu(ROOT / "build", GpuBuild(arguments.backend, arguments.arch), show_progress)
    suffix = {32: "", 64: "_wave64"}[arguments.warp_size]
    build = EmulatorBuild(f"exllama_emu{suffix}", warp_size=arguments.warp_size, sanitize=arguments.sanitize)
    return build_emulator(ROOT / "build", build, show_progress)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m exllama_ext.build", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("backend", choices=["cpu", "cuda", "hip", "emu"], help="what to build")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "exllama_ext", help="folder for the library (default: in place)"
    )
    parser.add_argument("--debug", action="store_true", help="cpu: AddressSanitizer and UBSan")
    parser.add_argument("--warp-size", type=int, choices=[32, 64], default=32, help="emu: lanes of a wave")
    parser.add_argument("--sanitize", choices=["", "address", "thread"], default="", help="emu: a sanitizer")
    parser.add_argument("--arch", nargs="+", default=[], help="cuda, hip: these architectures instead of all")
    arguments = parser.parse_args()
    try:
        if arguments.backend == "cpu":
            print(build_cpu(arguments.out, arguments.debug))
        else:
            library = build_library(arguments)
            target = arguments.out.resolve() / library.name
            partial = Path(shutil.copy2(library, target.with_suffix(".partial")))
            print(partial.replace(target))
    except BuildFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
