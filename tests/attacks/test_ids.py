"""Every test of this folder says in its docstring which attack it answers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

IDS = {f"S{number:02}" for number in range(1, 28)} | {f"R{number:02}" for number in range(1, 15)}
FILES = sorted(Path(__file__).parent.glob("test_s[0-9]*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstrings_begin_with_the_id(path: Path) -> None:
    expected = path.stem.split("_")[1].upper()
    tests = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
    tests = [node for node in tests if node.name.startswith("test_")]
    assert tests
    assert expected in IDS
    for node in tests:
        assert (ast.get_docstring(node) or "").split(":")[0] == expected, node.name
        assert node.name.startswith(f"test_{expected.lower()}_")
