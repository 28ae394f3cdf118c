"""Builds the native module: the one list of sources and flags, for wheels and for working in place.

    python -m exllama_ext.build cpu [--out FOLDER] [--debug]

Every kernel file of a CPU level is compiled with that level's flags; the level is chosen at run time.
Needs a C++20 compiler (g++ >= 11 or clang >= 14), ninja and pybind11. Nothing here knows torch.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# gcc 12 warns about its own AVX-512 headers.
QUIET = ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
LEVELS: dict[str, list[str]] = {
    "generic": [],
    "avx2": AVX2,
    "avx512": AVX2 + AVX512 + QUIET,
    "avx512_bf16": [*AVX2, *AVX512, "-mavx512bf16", *QUIET],
    "amx": [*AVX2, *AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16", *QUIET],
}
PLAIN_SOURCES = ["team.cpp", "memory.cpp", "pack.cpp", "plan.cpp", "dispatch.cpp", "limits.cpp", "sampling.cpp"]


class BuildFailed(RuntimeError):
    """The compiler or a tool is missing or failed; the text says which and what to install."""


def levels() -> list[str]:
    """CPU levels that this machine's compiler can build."""
    return list(LEVELS) if platform.machine().lower() in ("x86_64", "amd64") else ["generic"]


def _tool(name: str, hint: str) -> str:
    beside = Path(sys.executable).parent / name  # ninja installed into the environment that runs us
    path = shutil.which(name) or (str(beside) if beside.exists() else None)
    if not path:
        raise BuildFailed(f"{name} was not found: {hint}")
    return path


def _compiler() -> str:
    wanted = os.environ.get("CXX", "").split() or ["g++"]
    return " ".join([_tool(wanted[0], "install a C++ compiler (Debian: apt install g++) or set CXX"), *wanted[1:]])


def _pybind11_include() -> str:
    try:
        import pybind11
    except ImportError as error:
        raise BuildFailed("the Python package pybind11 was not found: pip install pybind11") from error
    return str(pybind11.get_include())


def module_name() -> str:
    return "_C" + str(sysconfig.get_config_var("EXT_SUFFIX"))


def write_ninja(build_dir: Path, target: Path, extra: list[str]) -> None:
    """One rule, one line per object file."""
    flags = " ".join([*COMMON_FLAGS, *extra])
    include = f"-isystem {_pybind11_include()} -isystem {sysconfig.get_paths()['include']} -I{ROOT / 'kernels'}"
    lines = [
        f"cxx = {_compiler()}",
        "rule compile",
        f"  command = $cxx {flags} $flags {include} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link",
        "  command = $cxx -shared $in -o $out -pthread",
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
            add(
                CPU / "level.cpp",
                f"level_{level}.o",
                " ".join([f"-DEXL_LEVEL={order}", f"-DEXL_ISA={level}", *LEVELS[level]]),
            )
    for name in PLAIN_SOURCES:
        add(CPU / name, name.replace(".cpp", ".o"))
    add(ROOT / "exllama_ext" / "bindings.cpp", "bindings.o")
    lines.append(f"build {target}: link {' '.join(objects)}")
    (build_dir / "build.ninja").write_text("\n".join(lines) + "\n")


def build_cpu(out_dir: Path, debug: bool = False) -> Path:
    """Builds `_C` into out_dir and returns its path; does nothing when it is up to date. Raises BuildFailed."""
    build_dir = (
        ROOT / "build" / ("cpu-debug" if debug else "cpu") / f"cp{sys.version_info.major}{sys.version_info.minor}"
    )
    build_dir.mkdir(parents=True, exist_ok=True)
    target = out_dir.resolve() / module_name()
    sanitize = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if debug else []
    write_ninja(build_dir, target, sanitize)
    ninja = _tool("ninja", "pip install ninja")
    result = subprocess.run(
        [ninja, "-C", str(build_dir), "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        first = next((line for line in result.stdout.splitlines() if "error" in line), "")
        raise BuildFailed(f"the native build failed: {first}\n{result.stdout[-4000:]}")
    return target


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m exllama_ext.build", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("backend", choices=["cpu"], help="what to build")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "exllama_ext", help="folder for the module (default: in place)"
    )
    parser.add_argument("--debug", action="store_true", help="AddressSanitizer and UBSan")
    arguments = parser.parse_args()
    try:
        print(build_cpu(arguments.out, arguments.debug))
    except BuildFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
