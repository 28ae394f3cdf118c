"""The Python of the README runs, as a user would paste it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

from tests.unit.tree import ROOT

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 2


@pytest.mark.model
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:exllama", "-c", textwrap.dedent(snippet)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
