"""Nothing is ever unpickled, on no way."""

from __future__ import annotations

import _pickle
import ast
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from exllama import formats
from exllama.loader.sources import open_checkpoint
from tests.formats.test_gguf_files import write_model
from tests.tokenizer.test_folder_tokenizers import byte_level_backend, save

ROOT = Path(__file__).parents[2]
BANNED = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "multiprocessing"}


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_s04_no_module_imports_a_pickler() -> None:
    """S04: neither pickle nor what is built on it."""
    sources = [path for folder in ("exllama", "conversion", "exllama_ext") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 20
    for path in sources:
        text = path.read_text("utf-8")
        assert not imported(ast.parse(text)) & BANNED, path
        assert "torch.load" not in text, path
        assert "allow_pickle=True" not in text, path


def test_s04_loading_works_without_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S04: GGUF and safetensors models and tokenizers load with every unpickler poisoned."""

    def poisoned(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("something was unpickled")

    save_file({"a.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    save(tmp_path, byte_level_backend())
    gguf = tmp_path / "other" / "model.gguf"
    gguf.parent.mkdir()
    write_model(gguf)
    for module in (pickle, _pickle):
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(module, name, poisoned)
    monkeypatch.setattr(torch, "load", poisoned)
    with open_checkpoint(tmp_path) as checkpoint:
        formats.load_weight(checkpoint, "a", (4, 4), "cpu")
        checkpoint.load_tokenizer().encode("x")
    with open_checkpoint(gguf) as checkpoint:
        key = "model.layers.0.mlp.down_proj"
        rows, columns = checkpoint.tensors[f"{key}.weight"].shape
        formats.load_weight(checkpoint, key, (rows, columns), "cpu")
