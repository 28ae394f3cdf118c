"""The habits of the house that a machine can check: size, doors, and what must not be there at all."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exllama.ops.native import native
from tests.unit.tree import ROOT, Source, functions, imports, product, sources

LINES_PER_FILE = 500
LINES_PER_FILE_WITH_REASON = 800
LINES_PER_FUNCTION = 60
PARAMETERS = 10
# Files that a person runs: they may print and end the process.
COMMANDS = {"exllama.chat", "exllama.bench", "exllama.eval", "exllama.convert", "exllama.devices.__main__"}
# Within 30 lines of the top: "Longer than 500 lines: <reason>"
REASON = re.compile(r"[Ll]onger than 500 lines: \S.{20,}")
NATIVE = [path for suffix in ("h", "cpp", "cu", "cuh") for path in (ROOT / "kernels").rglob(f"*.{suffix}")]
BINDING = [path for suffix in ("h", "cpp") for path in (ROOT / "exllama_ext").rglob(f"*.{suffix}")]


def long_files(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        limit = LINES_PER_FILE_WITH_REASON if REASON.search("\n".join(lines[:30])) else LINES_PER_FILE
        if len(lines) > limit:
            yield f"{path}: {len(lines)} lines, at most {limit}"


def long_functions(source: Source) -> Iterator[str]:
    for node in functions(source.syntax):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > LINES_PER_FUNCTION:
            yield f"{source.path}:{node.lineno} {node.name}: {length} lines, at most {LINES_PER_FUNCTION}"


def many_parameters(source: Source) -> Iterator[str]:
    for node in functions(source.syntax):
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([argument for argument in given if argument.arg not in ("self", "cls")])
        if count > PARAMETERS:
            yield f"{source.path}:{node.lineno} {node.name}: {count} parameters, at most {PARAMETERS}"


def environment_reads(source: Source) -> Iterator[str]:
    if source.module == "exllama.settings":
        return
    for node in ast.walk(source.syntax):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in {"environ", "environb", "getenv", "putenv", "expandvars"}:
            yield f"{source.path}:{node.lineno} {name}: the environment is read in settings.py alone"


def calls(source: Source) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) for calls of plain names and attributes."""
    for node in ast.walk(source.syntax):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forbidden_calls(source: Source) -> Iterator[str]:
    banned = {"eval", "exec", "torch.load", "os._exit", "__import__"}
    if source.module not in COMMANDS:
        banned |= {"print", "sys.exit", "exit", "quit"}
    for name, node in calls(source):
        if name in banned:
            yield f"{source.path}:{node.lineno} {name}() has no place here"


def forbidden_imports(source: Source) -> Iterator[str]:
    for module, line in imports(source):
        if module.split(".")[0] in {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}:
            yield f"{source.path}:{line} imports {module}: nothing is ever unpickled"


def import_side_effects(source: Source) -> Iterator[str]:
    """Process-wide switches of torch are not ours to turn."""
    banned = {"torch.set_num_threads", "torch.set_default_dtype", "torch.set_default_device", "torch.manual_seed"}
    for name, node in calls(source):
        if name in banned:
            yield f"{source.path}:{node.lineno} {name}() changes the caller's process"


def futureless(source: Source) -> Iterator[str]:
    annotated = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
    needed = any(isinstance(node, annotated) for node in ast.walk(source.syntax))
    if needed and "from __future__ import annotations" not in source.text:
        yield f"{source.path}: lacks `from __future__ import annotations`"


def undocumented(source: Source) -> Iterator[str]:
    if source.syntax.body and ast.get_docstring(source.syntax) is None:
        yield f"{source.path}: no module docstring"


CHECKS: list[Callable[[Source], Iterator[str]]] = [
    long_functions,
    many_parameters,
    environment_reads,
    forbidden_calls,
    forbidden_imports,
    import_side_effects,
    futureless,
    undocumented,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_product(check: Callable[[Source], Iterator[str]]) -> None:
    assert [line for source in product() for line in check(source)] == []


def test_file_lengths() -> None:
    folders = ("exllama", "conversion", "exllama_ext", "tests", "benchmarks", "examples")
    assert list(long_files([*(source.path for source in sources(*folders)), *NATIVE, *BINDING])) == []


def test_kernels_know_neither_torch_nor_python() -> None:
    banned = re.compile(r"torch|pybind|Python\.h|\bATen\b|\bc10\b", re.IGNORECASE)
    found = [f"{path}: {match[0]}" for path in NATIVE if (match := banned.search(path.read_text(encoding="utf-8")))]
    assert NATIVE
    assert found == []


def test_the_native_module_needs_nothing_of_torch() -> None:
    """Neither a library nor a symbol: one build serves every version."""
    binary = Path(str(native().__file__)).read_bytes()
    assert not re.search(rb"libtorch|libc10|_ZNK?2at\d|_ZNK?3c10|_ZNK?5torch", binary)


def test_binding_includes_no_torch_header() -> None:
    banned = re.compile(r'#\s*include\s*[<"](torch|ATen|c10)/')
    assert [str(path) for path in BINDING if banned.search(path.read_text(encoding="utf-8"))] == []


def test_inline_assembly_stays_in_its_wrappers() -> None:
    asm = re.compile(r"\basm\s*(volatile)?\s*\(")
    cpu = ROOT / "kernels" / "cpu"
    wrappers = {*(ROOT / "kernels" / "include" / "exl").glob("*"), cpu / "amx.h", cpu / "peak.h"}
    wrappers.add(ROOT / "kernels" / "emulator" / "context.cpp")
    found = [path for path in NATIVE if path not in wrappers and asm.search(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (long_functions, "def f():\n" + "    x = 1\n" * 60),
        (many_parameters, "def f(a, b, c, d, e, f, g, h, i, *, j, k): ...\n"),
        (environment_reads, "import os\nx = os.environ.get('A')\n"),
        (environment_reads, "from os import getenv\ny = getenv('A')\n"),
        (forbidden_calls, "print('x')\n"),
        (forbidden_calls, "import sys\nsys.exit(1)\n"),
        (forbidden_calls, "import torch\ntorch.load('x')\n"),
        (forbidden_imports, "import pickle\n"),
        (forbidden_imports, "from pickle import loads\n"),
        (import_side_effects, "import torch\ntorch.set_num_threads(1)\n"),
        (futureless, "x: int = 1\n"),
        (undocumented, "from __future__ import annotations\n"),
    ],
)
def test_each_check_sees_a_breach(tmp_path: Path, check: Callable[[Source], Iterator[str]], text: str) -> None:
    path = tmp_path / "breach.py"
    path.write_text(text)
    assert list(check(Source(path, "exllama.layers.breach")))


def test_a_long_file_is_seen_and_a_reason_buys_room(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("x = 1\n" * 501)
    assert list(long_files([path]))
    path.write_text("# Longer than 500 lines: one table that must stay in one piece.\n" + "x = 1\n" * 700)
    assert not list(long_files([path]))
    path.write_text("# Longer than 500 lines: one table that must stay in one piece.\n" + "x = 1\n" * 800)
    assert list(long_files([path]))
