"""Model: loading, its errors and its progress; files that do not hold what their configuration says."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.errors import ContextError, FormatError, NumericsError, UnsupportedModelError, UsageError
from tests.models.toys import DEVICES, expected_logits, random_ids, relative_error, save, toy_config, toy_model

Tensors = dict[str, torch.Tensor]


def rewrite(
    folder: Path, config: dict[str, Any] | None = None, change: Callable[[Tensors], object] | None = None
) -> Path:
    """Changes a saved checkpoint in place."""
    if config is not None:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8")) | config
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(toy_model(toy_config("llama")), tmp_path)


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_model_tells(device: str, llama: dict[str, Model]) -> None:
    model = llama[device]
    assert (model.vocab_size, model.context_length, model.device) == (300, 1024, device)
    assert model.config.model_type == "llama"
    assert len(model.cache_layers) == 2
    parameters = sum(p.numel() for p in toy_model(toy_config("llama")).parameters())
    assert parameters * 4 <= model.nbytes <= parameters * 4 * 1.1  # rows are padded to the tiles of the kernels
    logits = model.logits(random_ids(3))
    assert logits.shape == (3, 300)
    assert logits.dtype == torch.float32


def test_results_of_an_earlier_call_stay(llama: dict[str, Model]) -> None:
    model = llama["cpu"]
    first = model.logits(random_ids(30))
    kept = first.clone()
    model.logits(random_ids(30, seed=2))
    assert torch.equal(first, kept)
    assert torch.equal(model.logits(random_ids(30)), first)


@pytest.mark.parametrize("ids", [[300], [-1], [], [[1, 2]]])
def test_token_ids_that_make_no_sense(ids: list[Any], llama: dict[str, Model]) -> None:
    with pytest.raises(UsageError, match="token"):
        llama["cpu"].logits(torch.tensor(ids, dtype=torch.int64))


def test_a_prompt_beyond_the_context(folder: Path) -> None:
    model = Model.from_pretrained(folder, context=32)
    assert model.logits(random_ids(32)).shape == (32, 300)
    with pytest.raises(ContextError) as caught:
        model.logits(random_ids(33))
    assert (caught.value.prompt_tokens, caught.value.limit) == (33, 32)


def test_a_context_beyond_the_training_length_warns(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert Model.from_pretrained(folder, context=2000).context_length == 2000
    assert "made for 1024 tokens" in caplog.text
    with pytest.raises(UsageError, match="context is 0"):
        Model.from_pretrained(folder, context=0)


@pytest.mark.parametrize("device", DEVICES)
def test_values_beyond_the_cache_name_the_layer(device: str, tmp_path: Path) -> None:
    network = toy_model(toy_config("llama"))
    with torch.no_grad():
        network.model.layers[1].self_attn.v_proj.weight *= 1e6
    model = Model.from_pretrained(save(network, tmp_path), device=device)
    for cache in ("fp16", "q8", "4,16"):
        with pytest.raises(NumericsError, match=r"model\.layers\.1\.self_attn at position 0"):
            model.logits(random_ids(5), cache)


@pytest.mark.parametrize("cache", ["fp16", "q4"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_damaged_row_ends_its_job_alone(device: str, cache: str, tmp_path: Path) -> None:
    network = toy_model(toy_config("llama"))
    with torch.no_grad():
        network.model.embed_tokens.weight[7] = math.nan
    model = Model.from_pretrained(save(network, tmp_path), device=device)
    runner = Runner(model, KVCache(model.cache_layers, 2, cache), 64, 2)
    ids, table = random_ids(20).to(torch.int32).numpy(), np.array([[0], [1]], np.int32)
    assert 7 not in ids

    def logits(first: np.ndarray) -> np.ndarray:
        """Of the second sequence, in a batch with `first`."""
        tokens, rows = np.concatenate([first, ids]), np.arange(20, dtype=np.int32)
        sequences = np.repeat(np.array([0, 1], np.int32), 20)
        return runner.forward(Batch(tokens, np.tile(rows, 2), sequences, table, rows + np.int32(20))).numpy().copy()

    expected = logits(ids)
    assert dict(runner.faults) == {}
    damaged = ids.copy()
    damaged[5] = 7
    found = logits(damaged)
    assert next(iter(runner.faults.items())) == (5, "model.layers.0.self_attn")
    assert max(runner.faults) < 20
    assert np.array_equal(found, expected)
    logits(ids)
    assert dict(runner.faults) == {}


def test_progress_ends_complete_and_may_stop_the_work(folder: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    Model.from_pretrained(folder, progress=lambda what, done, total: calls.append((what, done, total)))
    size = sum(t.nbytes for t in load_file(folder / "model.safetensors").values())
    assert calls[-1] == ("load", size, size)
    assert [done for _, done, _ in calls] == sorted({done for _, done, _ in calls})

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Model.from_pretrained(folder, progress=stop)


def test_closing_twice_and_leaving_a_with_block(folder: Path) -> None:
    with Model.from_pretrained(folder) as model:
        assert model.nbytes > 0
    assert model.nbytes == 0
    model.close()


def test_unknown_devices_are_refused(folder: Path) -> None:
    from exllama.errors import DeviceError

    with pytest.raises(DeviceError, match="warp:0"):
        Model.from_pretrained(folder, device="warp:0")


def test_a_missing_tensor(folder: Path) -> None:
    rewrite(folder, change=lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        Model.from_pretrained(folder)


def test_a_head_is_missing_and_not_tied(folder: Path) -> None:
    rewrite(folder, change=lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(FormatError, match=r"lm_head\.weight"):
        Model.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "lm_head.bias", "model.layers.2.mlp.up_proj.weight"]
)
def test_tensors_that_nothing_would_use(name: str, folder: Path) -> None:
    """A bias that is left out, or a layer too many, would change every answer without a sign."""
    rewrite(folder, change=lambda tensors: tensors.update({name: torch.ones(128)}))
    with pytest.raises(FormatError, match="holds another model") as caught:
        Model.from_pretrained(folder)
    assert caught.value.field == name


def test_what_old_exporters_leave_behind_is_harmless(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, change=lambda tensors: tensors.update({name: torch.ones(16)}))
    assert Model.from_pretrained(folder).vocab_size == 300


@pytest.mark.parametrize(
    ("name", "shape"),
    [("model.embed_tokens.weight", (299, 64)), ("model.layers.0.self_attn.k_proj.weight", (128, 64)),
     ("model.layers.0.mlp.down_proj.weight", (96, 64)), ("model.norm.weight", (1, 64)), ("model.norm.weight", (65,)),
     ("lm_head.weight", (300 * 64,))],
)  # fmt: skip
def test_tensors_of_another_shape(name: str, shape: tuple[int, ...], folder: Path) -> None:
    rewrite(folder, change=lambda tensors: tensors.update({name: torch.zeros(shape)}))
    with pytest.raises(FormatError) as caught:
        Model.from_pretrained(folder)
    assert caught.value.field == f"shape of {name}"
    assert caught.value.found == shape


def test_a_config_of_another_shape(folder: Path) -> None:
    with pytest.raises(FormatError, match="shape of"):
        Model.from_pretrained(rewrite(folder, {"num_attention_heads": 8, "head_dim": 16, "num_key_value_heads": 8}))


def test_a_config_of_another_architecture(folder: Path) -> None:
    with pytest.raises(FormatError, match=r"self_attn\.q_norm\.weight"):
        Model.from_pretrained(rewrite(folder, {"model_type": "qwen3"}))


def test_an_unknown_architecture(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="supported: llama, mistral, qwen2, qwen3"):
        Model.from_pretrained(rewrite(folder, {"model_type": "retnet"}))


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_head_that_is_stored_too(equal: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that differs is the one to use, as transformers does."""
    model = toy_model(toy_config("llama", tie_word_embeddings=False))
    if equal:
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
    save(model, tmp_path)
    rewrite(tmp_path, {"tie_word_embeddings": True})
    ids = random_ids(10)
    with caplog.at_level(logging.WARNING):
        opened = Model.from_pretrained(tmp_path)
    assert relative_error(opened.logits(ids), expected_logits(model, ids)) < 1e-3
    assert ("lm_head differs" in caplog.text) == (not equal)


def test_importing_the_engine_leaves_transformers_alone() -> None:
    heavy = "('transformers', 'huggingface_hub', 'rich', 'safetensors')"
    code = f"import sys, exllama.engine.model; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
