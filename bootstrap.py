"""Makes the environment that the Makefile's targets run in: `python3 bootstrap.py run|dev [--torch SPEC]`.

Standard library only, because it runs before anything is installed. Every step leaves a stamp in .venv and is skipped
while nothing that it depends on has changed. All output goes to stderr: stdout belongs to the target that comes after.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST = (3, 10)
NEEDED = {"run": 1500 << 20, "dev": 2000 << 20}  # bytes that the environment takes, downloads and build included
BUILD_TOOLS = ["setuptools>=77", "pybind11>=2.12", "ninja", "numpy"]


class SetupError(Exception):
    """A step that cannot be done on this machine; the text names what is missing and how to get it."""


def say(text: str) -> None:
    print(f"exllama: {text}", file=sys.stderr, flush=True)


def compiler() -> str | None:
    """The C++ compiler that exllama_ext/build.py will use, or None."""
    return shutil.which((os.environ.get("CXX", "").split() or ["g++"])[0])


def check_machine() -> None:
    """Everything that pip cannot fetch, asked for before anything is downloaded."""
    if sys.version_info < OLDEST:
        raise SetupError(f"this is Python {sys.version.split()[0]}, 3.10 or newer is needed: make PYTHON=python3.11")
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"{sys.executable} has no venv module: install it (Debian, Ubuntu: apt-get install python{version}-venv)"
        )
    if compiler() is None:
        raise SetupError(
            "no C++ compiler found (neither $CXX nor g++): install one (Debian, Ubuntu: apt-get install g++; "
            "Fedora: dnf install gcc-c++) or set CXX"
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        raise SetupError(
            f"the headers of this Python are missing ({header}): install them (Debian, Ubuntu: apt-get install "
            "python3-dev; Fedora: dnf install python3-devel)"
        )


def check_space(kind: str) -> None:
    """Room for a new environment."""
    free = shutil.disk_usage(ROOT).free
    if not PYTHON.exists() and free < NEEDED[kind]:
        raise SetupError(
            f"{ROOT} has {free >> 20} MiB free, the environment takes up to {NEEDED[kind] >> 20} MiB: "
            "free some space, or put this folder on another disk"
        )


def run(command: list[str], failure: str) -> None:
    """Runs a step without stdin, with its stdout on stderr."""
    sys.stderr.flush()
    if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
        raise SetupError(failure)


def pip(*arguments: str) -> None:
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    run(
        [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *quiet, *arguments],
        f"pip could not install {' '.join(arguments)}: its reason stands above (most often no network or a full disk); "
        "the next run goes on from here",
    )


def fingerprint(*parts: str) -> str:
    """What an installed environment depends on."""
    digest = hashlib.sha256("\0".join([*parts, sys.version, str(ROOT)]).encode())
    for name in ("pyproject.toml", "setup.py", "bootstrap.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def sources() -> Iterator[Path]:
    for folder in ("kernels", "exllama_ext"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".cpp", ".cu", ".cuh", ".h", ".py"}:
                yield path


def create_venv() -> None:
    """An environment with a working pip; one that an interrupted run left half made is made again."""
    if PYTHON.exists() and subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return
    say(f"creating {VENV.name} with {sys.executable}")
    failure = "venv failed: its reason stands above (a full disk; Debian, Ubuntu: apt-get install python3-venv)"
    run([sys.executable, "-m", "venv", "--clear", str(VENV)], failure)


def install(kind: str, torch: str) -> None:
    """The virtual environment with torch, the build tools and this tree (editable), plus what tests need for "dev"."""
    stamp = VENV / f"stamp-{kind}"
    mark = fingerprint(torch)
    if stamp.is_file() and stamp.read_text() == mark:
        return
    check_machine()
    check_space(kind)
    create_venv()
    say(f"installing {torch} and the build tools (once; torch is a large download)")
    pip(*torch.split(), *BUILD_TOOLS)
    say("building exllama and installing it in place")
    pip("--no-build-isolation", "--editable", ".[dev]" if kind == "dev" else ".")
    (VENV / "stamp-native").touch()
    if kind == "dev":
        say("looking for the compilers of GPU kernels, whose absence is only told")
        run([str(PYTHON), "-m", "exllama_ext.toolchains"], "the search for GPU compilers failed")
    stamp.write_text(mark)
    if kind == "dev":
        (VENV / "stamp-run").write_text(mark)


def build() -> None:
    """The native module again, if a source is newer than the last build."""
    stamp = VENV / "stamp-native"
    built = stamp.stat().st_mtime if stamp.is_file() else 0.0
    if any((ROOT / "exllama_ext").glob("_C*")) and all(path.stat().st_mtime <= built for path in sources()):
        return
    check_machine()
    say("building the native module")
    run([str(PYTHON), "-m", "exllama_ext.build", "cpu"], "the native build failed: the compiler's reason stands above")
    stamp.touch()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("run", "dev"), help="what the environment is for")
    parser.add_argument("--torch", default="torch==2.13.0", help="pip's words for torch")
    args = parser.parse_args()
    try:
        install(args.kind, args.torch)
        build()
    except SetupError as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"{error.filename or VENV}: {error.strerror}: free some space or mend its permissions")
        return 1
    except KeyboardInterrupt:
        say("stopped; the next run goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
