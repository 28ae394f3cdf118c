"""What nvcc made of the kernels, read from the finished library: instructions and resources, function by function."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from exllama_ext.toolchains import find_disassembler
from exllama_ext.tools import BuildFailed


def cuobjdump(library: Path, *options: str) -> str:
    """Its output; skips the test with a notice where the tool is missing."""
    try:
        folder = find_disassembler()
    except BuildFailed as missing:
        pytest.skip(f"NOTICE: machine code is not read on this machine: {missing}")
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(folder / "cuobjdump"), *options, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def architectures(library: Path) -> set[str]:
    """Those that the library holds machine code for: {"sm_75", ...}."""
    return set(re.findall(r"(sm_\d+[af]?)\.cubin", cuobjdump(library, "-lelf")))


def instructions(library: Path, arch: str) -> dict[str, Counter[str]]:
    """How often each instruction, with its modifiers, stands in each function (by mangled name)."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    name = ""
    for line in cuobjdump(library, "-sass", "-arch", arch).splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            name = match[1]
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", line):
            found[name][match[1]] += 1
    return dict(found)


def resources(library: Path) -> dict[tuple[str, str], dict[str, int]]:
    """{(architecture, mangled name): {"REG": 32, "STACK": 0, "SHARED": 1024, "LOCAL": 0}}."""
    found, arch, name = {}, "", ""
    for line in cuobjdump(library, "-res-usage").splitlines():
        if match := re.search(r"arch = (\S+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+?):?$", line):
            name = match[1]
        elif name and "REG:" in line:
            found[arch, name] = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            name = ""
    return found
