"""Every known attack (S) and fault (R) has a test that begins its docstring with the id, or a reason why not yet.

What the ids stand for: docs/threats.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.tree import ROOT

TESTS = ROOT / "tests"
THREATS = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([SR]\d\d) \| (.+) \| (.+) \|$", THREATS, re.MULTILINE)
IDS = [row[0] for row in ROWS]
WAITING = {ident for ident, _, state in ROWS if state != "tested"}
FILES = [path for folder in ("attacks", "faults") for path in sorted((TESTS / folder).glob("test_[sr][0-9]*.py"))]


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """(name, docstring) of every test of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield node.name, ast.get_docstring(node) or ""


NAMED = {
    match[1]
    for path in TESTS.rglob("test_*.py")
    for _, text in docstrings(path)
    if (match := re.match(r"([SR]\d\d): ", text))
}


def test_the_list_is_whole() -> None:
    known = [f"S{number:02}" for number in range(1, 28)] + [f"R{number:02}" for number in range(1, 15)]
    assert known == IDS


@pytest.mark.parametrize("ident", IDS)
def test_each_has_a_test_or_waits_for_its_feature(ident: str) -> None:
    assert (ident in NAMED) != (ident in WAITING)


def test_no_test_names_an_unknown_one() -> None:
    assert set(IDS) >= NAMED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_hold_what_their_names_say(path: Path) -> None:
    expected = path.stem.split("_")[1].upper()
    found = list(docstrings(path))
    assert found
    for name, text in found:
        assert text.split(":")[0] == expected, name
        assert name.startswith(f"test_{expected.lower()}_")
