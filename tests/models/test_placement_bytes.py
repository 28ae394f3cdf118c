"""Predicted bytes against those that the engine really takes, on the CPU and on an emulated GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exllama import ops
from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.loader.placement import KindSizes
from exllama.loader.sizing import model_sizes
from exllama.loader.sources import open_checkpoint
from tests.models.exl3_toys import save_exl3
from tests.models.toys import save, toy_config, toy_model

ROWS, SEQUENCES, PAGES = 96, 4, 3
BOUND = 0.03
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 256, "intermediate_size": 700, "num_hidden_layers": 3},
    "qwen3": {"hidden_size": 192, "intermediate_size": 512, "tie_word_embeddings": True, "head_dim": 64},
    "qwen2": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "vocab_size": 2000},
}


@pytest.fixture(scope="module", params=list(SHAPES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dtype = {"llama": torch.float16, "qwen3": torch.bfloat16, "qwen2": torch.float32}[request.param]
    config = toy_config(request.param, **SHAPES[request.param])
    return save(toy_model(config), tmp_path_factory.mktemp(request.param), dtype)


def predicted(folder: Path, device: str, cache: str) -> KindSizes:
    with open_checkpoint(folder) as checkpoint:
        sizes = model_sizes(checkpoint, cache, ROWS, SEQUENCES)
    return sizes.cpu if device == "cpu" else sizes.gpu


def near(found: int, expected: int) -> bool:
    return abs(found - expected) <= BOUND * expected


@pytest.mark.parametrize("cache", ["fp16", "q4"])
def test_on_the_cpu(folder: Path, cache: str) -> None:
    sizes = predicted(folder, "cpu", cache)
    with Model.from_pretrained(folder) as model:
        assert near(sizes.embedding + sum(sizes.blocks) + sizes.head, model.nbytes)
        assert PAGES * sum(sizes.pages) == KVCache(model.cache_layers, PAGES, cache).nbytes


def test_exl3_on_the_cpu(tmp_path: Path) -> None:
    """Tied by its configuration, with a head of its own in the file."""
    save_exl3(toy_model(toy_config("llama", hidden_size=256, intermediate_size=640)), tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    sizes = predicted(tmp_path, "cpu", "fp16")
    with Model.from_pretrained(tmp_path) as model:
        assert near(sizes.embedding + sum(sizes.blocks) + sizes.head, model.nbytes)


@pytest.mark.parametrize("cache", ["fp16", "q8"])
def test_on_an_emulated_gpu(folder: Path, cache: str) -> None:
    """What is free before and after a full step: weights, cache, activations, inputs, logits and all."""
    sizes = predicted(folder, "emu:0", cache)
    before = ops.gpu_free_bytes("emu:0")
    with Model.from_pretrained(folder, "emu:0") as model:
        store = KVCache(model.cache_layers, PAGES, cache)
        runner = Runner(model, store, ROWS, SEQUENCES)
        rows = np.arange(SEQUENCES, dtype=np.int32)
        runner.forward(Batch(rows, 0 * rows, rows, np.zeros((SEQUENCES, 16), np.int32), rows))
        taken = before - ops.gpu_free_bytes("emu:0")
    parts = (sizes.embedding, *sizes.blocks, sizes.head, sizes.workspace, sizes.partials, sizes.head_workspace)
    assert near(sum(parts) + PAGES * sum(sizes.pages), taken)
    del runner, store
    assert ops.gpu_free_bytes("emu:0") == before
