"""`make lint`, as a test: the tools' own words are the message."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.tree import ROOT

NATIVE = sorted(
    path
    for folder in ("kernels", "exllama_ext")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".cpp", ".h", ".cu", ".cuh"}
)
FOLDERS = re.findall(r"^SOURCES := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0].split()


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", *FOLDERS],
        [sys.executable, "-m", "ruff", "format", "--check", *FOLDERS],
        [sys.executable, "-m", "mypy"],
        [str(Path(sys.executable).with_name("clang-format")), "--dry-run", "--Werror", *map(str, NATIVE)],
    ],
    ids=["ruff", "format", "mypy", "clang-format"],
)
def test_lint(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
