"""The compilers for GPUs: where they are, and how a machine that lacks them gets them.

    python -m exllama_ext.toolchains      installs what the compile tests need, as far as this machine lets it

CUDA: nvcc of an installed toolkit, else NVIDIA's pip packages in a folder of their own. AMD: clang 19 with the ROCm
device libraries and the HIP runtime's headers; Debian 12 has them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from exllama_ext.tools import ROOT, BuildFailed

TOOLS = ROOT / "build" / "tools"
CUDA_ROOTS = (Path("/usr/local/cuda"),)
CUDA_PACKAGES = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl", "nvidia-nvvm")
# They read what any nvcc 13 wrote.
DISASSEMBLER_PACKAGES = ("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm")
APT_PACKAGES = ["clang-19", "clang-tools-19", "lld-19", "llvm-15", "rocm-device-libs", "libamdhip64-dev"]

# Device libraries that are older than a GPU lack the file that holds its instruction-set version: one constant each.
ISA_VERSIONS = {
    "942": 9402, "950": 9500, "1100": 11000, "1101": 11001, "1102": 11002, "1103": 11003,
    "1150": 11500, "1151": 11501, "1200": 12000, "1201": 12001,
}  # fmt: skip
ISA_BITCODE = """\
target datalayout = "e-p:64:64-p1:64:64-p2:32:32-p3:32:32-p4:64:64-p5:32:32-p6:32:32-i64:64-v16:16-v24:32-v32:32-v48:64\
-v96:128-v192:256-v256:256-v512:512-v1024:1024-v2048:2048-n32:64-S32-A5-G1-ni:7"
target triple = "amdgcn-amd-amdhsa"
@__oclc_ISA_version = linkonce_odr protected local_unnamed_addr addrspace(4) constant i32 {version}, align 4
"""


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit: bin/nvcc and what it needs below its root."""

    root: Path

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"


@dataclass(frozen=True)
class Rocm:
    """A clang for AMD GPUs, the folder of device libraries, the root of the HIP headers and runtime."""

    clang: str
    device_libraries: Path
    root: Path


def find_cuda() -> Cuda:
    """The toolkit of $CUDA_HOME, of nvcc on PATH, of /usr/local/cuda or of the tools folder. Raises BuildFailed."""
    named, on_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    places = [Path(named)] if named else []
    places += [Path(on_path).resolve().parent.parent] if on_path else []
    places += [*CUDA_ROOTS, TOOLS / "cuda" / "nvidia" / "cu13"]
    for root in places:
        if (root / "bin" / "nvcc").exists() and (root / "include" / "cuda_runtime.h").exists():
            return Cuda(root)
    raise BuildFailed(
        "nvcc was not found: install the CUDA toolkit 12.8 or newer, name it with CUDA_HOME, or run "
        "`python -m exllama_ext.toolchains`, which fetches NVIDIA's compiler packages into build/tools"
    )


def find_rocm() -> Rocm:
    """clang 19 with device libraries, or those of a ROCm installation. Raises BuildFailed."""
    for clang, root in (("/opt/rocm/llvm/bin/clang++", Path("/opt/rocm")), ("clang++-19", Path("/usr"))):
        path = shutil.which(clang)
        found = next(iter([*root.glob("lib/**/ockl.bc"), *root.glob("amdgcn/bitcode/ockl.bc")]), None) if path else None
        if path and found and (root / "include" / "hip" / "hip_runtime.h").exists():
            return Rocm(path, complete_device_libraries(found.parent), root)
    raise BuildFailed(
        "no compiler for AMD GPUs was found: install ROCm, or on Debian 12 `apt-get install --no-install-recommends "
        f"{' '.join(APT_PACKAGES)}`"
    )


def complete_device_libraries(folder: Path) -> Path:
    """The folder itself, or a copy with the missing instruction-set versions. Raises BuildFailed without llvm-as."""
    missing = [gpu for gpu in ISA_VERSIONS if not (folder / f"oclc_isa_version_{gpu}.bc").exists()]
    if not missing:
        return folder
    # An older assembler: newer compilers read its bitcode, not the reverse.
    assembler = next(filter(None, map(shutil.which, ("llvm-as-15", "llvm-as-14", "llvm-as-19"))), None)
    if not assembler:
        raise BuildFailed(f"the device libraries in {folder} lack {', '.join(missing)}: install llvm-15")
    copy = TOOLS / "amdgcn"
    copy.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.bc"):
        if not (copy / path.name).exists():
            shutil.copy(path, copy)
    for gpu in missing:
        target = copy / f"oclc_isa_version_{gpu}.bc"
        text = ISA_BITCODE.format(version=ISA_VERSIONS[gpu])
        if not target.exists():
            subprocess.run([assembler, "-o", str(target), "-"], input=text, text=True, check=True)
    return copy


def find_disassembler() -> Path:
    """The folder of cuobjdump and nvdisasm. Raises BuildFailed."""
    on_path = shutil.which("cuobjdump")
    for folder in [*([Path(on_path).parent] if on_path else []), TOOLS / "disassembler" / "nvidia" / "cu13" / "bin"]:
        if (folder / "cuobjdump").exists() and (folder / "nvdisasm").exists():
            return folder
    raise BuildFailed(
        f"cuobjdump and nvdisasm were not found: run `python -m exllama_ext.toolchains`, which fetches "
        f"{' and '.join(DISASSEMBLER_PACKAGES)} into build/tools"
    )


def install_packages(folder: str, packages: tuple[str, ...]) -> None:
    """NVIDIA's packages into a tools folder; the environment that runs the engine stays as it is."""
    wanted = [f"{name}>=13.0,<14" for name in packages]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--upgrade",
    ]
    done = subprocess.run([*command, "--target", str(TOOLS / folder), *wanted], stdout=sys.stderr)
    if done.returncode:
        raise BuildFailed(f"pip could not install {', '.join(packages)}: its reason stands above")


def install_cuda() -> None:
    install_packages("cuda", CUDA_PACKAGES)


def install_disassembler() -> None:
    install_packages("disassembler", DISASSEMBLER_PACKAGES)


def install_rocm() -> None:
    """Debian's packages, where this process may install them."""
    apt = shutil.which("apt-get")
    if not apt or os.name != "posix" or os.geteuid() != 0:
        raise BuildFailed(f"installing needs root and Debian: apt-get install {' '.join(APT_PACKAGES)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *APT_PACKAGES]):
        if subprocess.run(
            [apt, "-qq", *words], stdout=sys.stderr, env=environment, stdin=subprocess.DEVNULL
        ).returncode:
            raise BuildFailed(f"apt-get {words[0]} failed: its reason stands above")


STEPS = (
    ("NVIDIA's kernels will not be compiled here", find_cuda, install_cuda),
    ("NVIDIA's machine code will not be read here", find_disassembler, install_disassembler),
    ("AMD's kernels will not be compiled here", find_rocm, install_rocm),
)


def main() -> int:
    """Finds or installs each tool; a missing one is a notice, not a failure."""
    for consequence, find, install in STEPS:
        try:
            find()
        except BuildFailed:
            try:
                install()
                find()
            except BuildFailed as error:
                print(f"exllama: NOTICE: {consequence}: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
