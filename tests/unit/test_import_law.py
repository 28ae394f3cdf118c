"""Who may import what: a module names only rooms below its own, and no two rooms lean on each other."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.unit.tree import Source, imports, product, sources

# From the ground up. A room may use every room of a lower floor, and a neighbour on its own if that closes no cycle.
FLOORS = [
    {"errors", "settings", "lock", "reference"},
    {"ops", "devices"},
    {"formats"},
    {"layers", "cache", "tokenizer"},
    {"architectures", "loader", "lora", "vision"},
    {"engine"},
    {"evaluation"},
    {"generator", "conversion"},
    {"cli", "server"},
    {"chat", "convert", "eval", "bench", "devices.__main__", "__init__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
STRANGERS = {("generator", "conversion"), ("conversion", "generator")}
ONLY_HERE = {
    "exllama_ext": {"exllama.ops.native", "exllama.ops.gpu"},
    "exllama.conversion": {"exllama.convert"},
    "conversion": {"exllama.convert"},
}


def room(module: str) -> str:
    """exllama.generator.sampling.sampler -> generator; exllama itself -> __init__."""
    parts = module.split(".")[1:]
    if not parts:
        return "__init__"
    return ".".join(parts[:2]) if parts[:2] == ["devices", "__main__"] else parts[0]


def target_room(module: str) -> str | None:
    """The room that an imported name belongs to; None outside exllama and for names of exllama/__init__.py."""
    if module.split(".")[0] != "exllama":
        return None
    found = room(module)
    return found if found in FLOOR_OF else "__init__"


def violations(files: list[Source]) -> list[str]:
    wrong: list[str] = []
    leans: dict[str, dict[str, str]] = defaultdict(dict)
    for source in files:
        here = room(source.module)
        if here not in FLOOR_OF:
            wrong.append(f"{source.module}: no room {here!r} in the house (DESIGN section 3)")
            continue
        for module, line in imports(source):
            where = f"{source.module}:{line} imports {module}"
            for door, owners in ONLY_HERE.items():
                if (module == door or module.startswith(door + ".")) and source.module not in owners:
                    inside = door == "exllama.conversion" and here == "conversion"
                    if not inside:
                        wrong.append(f"{where}, which only {', '.join(sorted(owners))} may")
            there = target_room(module)
            if there is None or there == here:
                continue
            if FLOOR_OF[there] > FLOOR_OF[here]:
                wrong.append(f"{where}: {here} lies below {there}")
            elif (here, there) in STRANGERS:
                wrong.append(f"{where}: {here} and {there} are siblings")
            leans[here].setdefault(there, where)
    wrong.extend(cycles(leans))
    return wrong


def cycles(leans: dict[str, dict[str, str]]) -> list[str]:
    """Rooms that reach themselves, each with the import that starts the way."""
    found = []
    for start in leans:
        seen, todo = set(), list(leans[start])
        while todo:
            at = todo.pop()
            if at == start:
                found.append(f"cycle through {start}: {'; '.join(leans[start].values())}")
                break
            if at not in seen:
                seen.add(at)
                todo.extend(leans.get(at, {}))
    return found


def test_the_tree_keeps_the_law() -> None:
    assert violations(product()) == []


def test_native_module_imports_nothing_of_the_engine_but_errors() -> None:
    named = {module for source in sources("exllama_ext") for module, _ in imports(source)}
    assert {module for module in named if re.match(r"exllama\.(?!errors)", module)} == set()


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"exllama.formats.gguf": "from exllama.loader.checkpoint import Checkpoint\n"}, "lies below loader"),
        ({"exllama.engine.model": "from exllama import Generator\n"}, "lies below __init__"),
        ({"exllama.engine.model": "from ..generator import generator\n"}, "lies below generator"),
        ({"exllama.conversion.job": "import exllama.generator.job\n"}, "siblings"),
        ({"exllama.layers.linear": "import exllama_ext\n"}, "only exllama.ops.gpu, exllama.ops.native"),
        ({"exllama.eval": "from exllama.conversion import job\n"}, "only exllama.convert"),
        ({"exllama.magic": ""}, "no room 'magic'"),
        (
            {
                "exllama.layers.attention": "from exllama.cache import pages\n",
                "exllama.cache.pages": "import typing\nif typing.TYPE_CHECKING:\n    from exllama.layers import norm\n",
            },
            "cycle through",
        ),
    ],
)
def test_each_kind_of_violation_is_seen(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    made = []
    for module, text in files.items():
        path = tmp_path / f"{module}.py"
        path.write_text(text)
        made.append(Source(path, module))
    assert any(complaint in line for line in violations(made)), violations(made)
