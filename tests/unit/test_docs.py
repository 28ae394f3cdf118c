"""The documents say what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import COMMANDS, PAGES, parser_of
from tests.unit.tree import ROOT, sources

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_help_is_documented(command: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split(f"## `python -m exllama.{command}", 1)[1]
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", parser_of(command).format_help())) - {"--help"}
    assert flags
    assert {flag for flag in flags if flag not in section} == set()


def test_every_variable_is_documented() -> None:
    named = {name for source in sources("exllama") for name in re.findall(r"EXLLAMA_[A-Z_]+\b", source.text)}
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert named
    assert {name for name in named if f"`{name}`" not in page} == set()


def test_the_readme_is_short_and_starts_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    commands = [line for line in lines if line.startswith("make ")]
    assert [command.split()[:2] for command in commands[:2]] == [["make", "chat"], ["make", "test"]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_exist(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in linked if not (path.parent / link).exists()] == []
    named = re.findall(r"`((?:exllama|exllama_ext|kernels|conversion|docs|tests|benchmarks|examples)/[\w./-]+)`", text)
    placeholders = ("NAME", "KIND")
    assert [name for name in named if not (ROOT / name).exists() and not any(p in name for p in placeholders)] == []


def test_documents_name_modules_that_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"python -m (exllama[\w.]*)", path.read_text(encoding="utf-8")):
            parts = name.split(".")
            file = ROOT.joinpath(*parts).with_suffix(".py")
            assert file.exists() or (ROOT.joinpath(*parts) / "__main__.py").exists(), f"{path.name}: {name}"
