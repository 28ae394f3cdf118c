"""What the house-rule tests know about the tree: its files, their syntax, who imports whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """A Python file and its dotted module name; conversion/ goes by its installed name."""

    path: Path
    module: str

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def syntax(self) -> ast.Module:
        return parse(self.path)

    @property
    def shown(self) -> str:
        return str(self.path.relative_to(ROOT))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def sources(*folders: str) -> list[Source]:
    """Every Python file below the folders, by path."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            name = ".".join(parts)
            found.append(Source(path, f"exllama.{name}" if folder == "conversion" else name))
    return found


def product() -> list[Source]:
    """exllama/ and conversion/: what the rules of the product hold for."""
    return sources("exllama", "conversion")


def imports(source: Source) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, wherever it stands in the file; TYPE_CHECKING blocks count too."""
    package = source.module.split(".") if source.path.name == "__init__.py" else source.module.split(".")[:-1]
    for node in ast.walk(source.syntax):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from exllama import ops` names a module too
            yield from ((f"{name}.{alias.name}", node.lineno) for alias in node.names)


def functions(syntax: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(syntax):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
