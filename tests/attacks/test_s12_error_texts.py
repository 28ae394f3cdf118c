"""What an error says: neither addresses nor tracebacks, and no more of a file than the field in question."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exllama.errors import ExllamaError
from exllama.generator.constraints import Grammar
from exllama.generator.job import Job
from exllama.generator.sampling import Sampling
from tests.generator.fake_model import make
from tests.unit.tree import ROOT

LEAK = re.compile(r"0x[0-9a-f]{5,}|Traceback|File \"|site-packages|object at")
SECRET = "the-secret-of-the-file"


def broken_files(folder: Path) -> list[Path]:
    """Every kind of file that is opened, damaged, with a secret in it that is none of the defect."""
    folder.mkdir()
    (folder / "magic.gguf").write_bytes(b"NOPE" + SECRET.encode())
    (folder / "counts.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16 + SECRET.encode() * 9)
    contents = {
        "header": ({"model.safetensors": b"\xff" * 8 + SECRET.encode(), "config.json": b"{}"}),
        "json": ({"model.safetensors": (2).to_bytes(8, "little") + b"{}", "config.json": b'{"a": ' + SECRET.encode()}),
        "kind": ({"model.safetensors": (2).to_bytes(8, "little") + b"{}", "config.json": b'{"model_type": "x"}'}),
    }
    for name, files in contents.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
    return [folder / "magic.gguf", folder / "counts.gguf", *(folder / name for name in contents)]


def test_s12_command_lines_say_one_sentence(tmp_path: Path) -> None:
    """S12: whatever is wrong with the model."""
    program = """
import sys
from exllama.cli.console import run_command_line
from exllama.devices.__main__ import main
for path in sys.argv[1:]:
    print(run_command_line(lambda: main(["plan", "-m", path])), file=sys.stderr)
"""
    paths = broken_files(tmp_path / "models")
    command = [sys.executable, "-c", program, *map(str, paths)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr
    assert said.count("exllama: ") == said.count("\n1\n") == len(paths), said
    assert LEAK.search(said) is None, said
    assert SECRET not in said


WRONG: dict[str, Callable[[Any], Any]] = {
    "prompt": lambda value: make()[0].enqueue(Job(value)),
    "stop": lambda value: Job("x", stop=[value]),
    "max_new_tokens": lambda value: Job("x", max_new_tokens=value),
    "deadline": lambda value: Job("x", deadline=value),
    "seed": lambda value: Job("x", seed=value),
    "sampling": lambda value: Job("x", sampling=value),
    "grammars": lambda value: Job("x", grammars=[value]),
    "banned_strings": lambda value: Job("x", banned_strings=[value]),
    "temperature": lambda value: Sampling(temperature=value),
    "logit_bias": lambda value: Sampling(logit_bias={5: value, 6: "x"}),
    "banned_tokens": lambda value: Sampling(banned_tokens=[value]),
    "json schema": lambda value: make()[0].enqueue(Job("x", grammars=[Grammar.json_schema({"type": value})])),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("value", [-1.5, [[]], {"a": "b" * 100_000}], ids=["number", "list", "object"])
def test_s12_values_of_a_request(name: str, value: Any) -> None:
    """S12: what JSON can hold comes back short, with nothing of the process in it."""
    with pytest.raises(ExllamaError) as error:
        WRONG[name](value)
    assert LEAK.search(str(error.value)) is None, str(error.value)
    assert len(str(error.value)) < 2000
