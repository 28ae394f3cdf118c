"""Pages that another request has filled: nothing of them is read, even where it is poison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exllama import ops
from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from tests.models.toys import random_ids, save, toy_config, toy_model
from tests.ops.blocks import dense

TOKENS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tmp_path_factory.mktemp("toy")
    return Model.from_pretrained(save(toy_model(toy_config("llama")), folder))


def poison(cache: KVCache) -> None:
    """Fills every slot of both pages with NaN, or where they are packed with the largest scales."""
    rows = np.arange(512, dtype=np.int32)
    for layer in cache.layers:
        width = layer.num_kv_heads * layer.head_dim
        plan = ops.CpuPlan(512, 1)
        q, k, v = (plan.buffer(width) for _ in range(3))
        table = dense(np.full((1, width), np.nan, np.float32))
        for buffer in (q, k, v):
            plan.embed(table, buffer)
        plan.rope_and_store(q, k, v, layer, None)
        plan.logits(q, table)
        plan.run(0 * rows, rows, 0 * rows, np.array([[0, 1]], np.int32), rows[:0])
        assert len(plan.faults) == 512


def logits(model: Model, cache: KVCache, steps: list[int]) -> np.ndarray:
    runner, ids = Runner(model, cache, TOKENS, 1), random_ids(TOKENS).to(torch.int32).numpy()
    found, begin = [], 0
    for size in steps:
        rows = np.arange(size, dtype=np.int32)
        batch = Batch(ids[begin : begin + size], rows + np.int32(begin), 0 * rows, np.array([[1, 0]], np.int32), rows)
        found.append(runner.forward(batch).numpy().copy())
        begin += size
    return np.concatenate(found)


@pytest.mark.parametrize("kind", ["fp16", "q8", "4,3", "16,4"])
@pytest.mark.parametrize("steps", [[300], [1] * 20 + [280], [17, 255, 28]], ids=len)
def test_s20_what_stood_in_a_page_before_is_never_read(model: Model, kind: str, steps: list[int]) -> None:
    """S20: the same bits on fresh pages and on poisoned ones."""
    fresh, used = (KVCache(model.cache_layers, 2, kind) for _ in range(2))
    poison(used)
    expected = logits(model, fresh, steps)
    assert np.isfinite(expected).all()
    assert np.array_equal(logits(model, used, steps), expected)
