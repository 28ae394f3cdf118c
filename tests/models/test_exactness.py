"""What a sequence computes depends on that sequence alone: not on chunks, batches, pages or its neighbours.

On the CPU and on an emulated GPU bit for bit. The reference device
leaves its sums to torch, whose order depends on the number of rows: there
the bound is a relative error of 1e-4 (measured 2e-7 with an fp32 cache; with fp16 a value may round the other way).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.errors import UsageError
from tests.models.toys import DEVICES, VOCAB, random_ids, relative_error, save, toy_config, toy_model

KINDS = ["fp16", "q8", "4,3"]
TOKENS = 300
CHUNKS = {
    "one by one": [1] * TOKENS,
    "a page first": [256, 44],
    "a page less one first": [255, 45],
    "a page and one first": [257, 43],
    "sevens": [7] * 42 + [6],
    "one last": [299, 1],
    "mixed": [16, 1, 3, 2, 8, 250, 20],
}


def ints(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), np.int32)


def new_runner(model: Model, kind: str, num_pages: int = 8, max_sequences: int = 16) -> Runner:
    return Runner(model, KVCache(model.cache_layers, num_pages, kind), max_rows=TOKENS, max_sequences=max_sequences)


def in_chunks(runner: Runner, ids: torch.Tensor, sizes: Iterable[int], pages: tuple[int, ...] = (0, 1)) -> torch.Tensor:
    """All logits of one sequence, run in chunks of these sizes."""
    found, begin = [], 0
    for size in sizes:
        rows = np.arange(size, dtype=np.int32)
        batch = Batch(ints(ids[begin : begin + size].tolist()), rows + ints([begin]), 0 * rows, ints(pages)[None], rows)
        found.append(runner.forward(batch).clone())
        begin += size
    assert begin == len(ids)
    return torch.cat(found)


def check_equal(device: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if device != "reference":
        assert torch.equal(found, expected)
    else:
        assert relative_error(found, expected) <= 1e-4


@pytest.fixture(scope="module")
def whole(llama: dict[str, Model]) -> dict[tuple[str, str], torch.Tensor]:
    """The prompt in one chunk, by device and cache kind."""
    ids = random_ids(TOKENS)
    return {(d, k): in_chunks(new_runner(llama[d], k), ids, [TOKENS]) for d in DEVICES for k in KINDS}


Whole = dict[tuple[str, str], torch.Tensor]


def test_caches_of_different_types_at_once(llama: dict[str, Model], whole: Whole) -> None:
    """The type belongs to the cache, so runners of one model may differ and take turns."""
    ids, runners, found = random_ids(TOKENS), [new_runner(llama["cpu"], kind) for kind in KINDS], []
    for begin in range(0, TOKENS, 100):
        rows = np.arange(100, dtype=np.int32)
        tokens = ints(ids[begin : begin + 100].tolist())
        batch = Batch(tokens, rows + ints([begin]), 0 * rows, ints([0, 1])[None], rows)
        found.append([runner.forward(batch).clone() for runner in runners])
    for kind, parts in zip(KINDS, zip(*found, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), whole["cpu", kind])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunks(chunks: str, kind: str, device: str, llama: dict[str, Model], whole: Whole) -> None:
    found = in_chunks(new_runner(llama[device], kind), random_ids(TOKENS), CHUNKS[chunks])
    check_equal(device, found, whole[device, kind])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_pages_in_any_place(kind: str, device: str, llama: dict[str, Model], whole: Whole) -> None:
    found = in_chunks(new_runner(llama[device], kind), random_ids(TOKENS), [200, 100], pages=(5, 2))
    check_equal(device, found, whole[device, kind])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_alone_as_in_a_batch(kind: str, device: str, llama: dict[str, Model]) -> None:
    """Sixteen sequences: prompts of unequal length in one batch, then one token of each in another."""
    model, lengths = llama[device], [1 + (7 * i) % 18 for i in range(16)]
    prompts = [random_ids(length + 1, seed=i) for i, length in enumerate(lengths)]
    expected = [in_chunks(new_runner(model, kind, 1, 1), ids, [len(ids)], (0,)) for ids in prompts]
    runner = new_runner(model, kind, num_pages=16)
    table = np.arange(16, dtype=np.int32)[::-1].copy()[:, None]

    tokens = ints(t for ids in prompts for t in ids[:-1].tolist())
    positions = ints(p for length in lengths for p in range(length))
    sequences = np.repeat(np.arange(16, dtype=np.int32), lengths)
    first = runner.forward(Batch(tokens, positions, sequences, table, np.arange(len(tokens), dtype=np.int32))).clone()
    check_equal(device, first, torch.cat([e[:-1] for e in expected]))

    tokens, each = ints(int(ids[-1]) for ids in prompts), np.arange(16, dtype=np.int32)
    second = runner.forward(Batch(tokens, ints(lengths), each, table, each))
    check_equal(device, second, torch.cat([e[-1:] for e in expected]))


@pytest.mark.parametrize("device", DEVICES)
def test_a_rolled_back_sequence_goes_on_as_if_nothing_had_been(device: str, llama: dict[str, Model]) -> None:
    """As after rejected drafts: what was stored beyond the accepted tokens is overwritten and never seen."""
    runner, ids = new_runner(llama[device], "4,3"), random_ids(60)
    expected = in_chunks(runner, ids, [40, 20])
    in_chunks(runner, torch.cat((ids[:40], random_ids(20, seed=9))), [40, 20])
    rows = np.arange(20, dtype=np.int32)
    batch = Batch(ints(ids[40:].tolist()), rows + ints([40]), 0 * rows, ints([0, 1])[None], rows)
    check_equal(device, runner.forward(batch), expected[40:])


@pytest.mark.parametrize("device", DEVICES)
def test_attention_is_causal(device: str, llama: dict[str, Model]) -> None:
    ids = random_ids(TOKENS)
    other = ids.clone()
    other[-1] = (other[-1] + 1) % VOCAB
    first, second = llama[device].logits(ids), llama[device].logits(other)
    assert torch.equal(first[:-1], second[:-1])
    assert not torch.equal(first[-1], second[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_every_architecture_token_by_token(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    window = {"sliding_window": 21, "use_sliding_window": True, "max_window_layers": 1}
    save(toy_model(toy_config(model_type, **window)), tmp_path, dtype)
    model, ids = Model.from_pretrained(tmp_path), random_ids(60)
    assert torch.equal(in_chunks(new_runner(model, "q8"), ids, [1] * 60), in_chunks(new_runner(model, "q8"), ids, [60]))


@pytest.mark.parametrize("kind", ["fp16", "q8", "q6", "q4", "16,4"])
def test_heads_of_80(kind: str, tmp_path: Path) -> None:
    save(toy_model(toy_config("llama", head_dim=80)), tmp_path)
    model, ids = Model.from_pretrained(tmp_path), random_ids(TOKENS)
    expected = in_chunks(new_runner(model, kind), ids, [TOKENS])
    for name in ("one by one", "mixed"):
        assert torch.equal(in_chunks(new_runner(model, kind), ids, CHUNKS[name]), expected), name


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int, llama_folder: Path, whole: Whole) -> None:
    model = Model.from_pretrained(llama_folder, threads=threads)
    assert torch.equal(in_chunks(new_runner(model, "q8"), random_ids(TOKENS), [TOKENS]), whole["cpu", "q8"])


GOOD = {"token_ids": [1], "positions": [0], "sequences": [0], "page_table": [[0]], "logit_rows": [0]}


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": [VOCAB]}, {"token_ids": [-1]}, {"positions": [256]}, {"positions": [-1]}, {"sequences": [1]},
        {"page_table": [[8]]}, {"page_table": [[-1]]}, {"logit_rows": [1]}, {"logit_rows": [-1]},
        {"token_ids": [1, 2]}, {"positions": [0, 2], "token_ids": [1, 1], "sequences": [0, 0]},
        {"token_ids": [], "positions": [], "sequences": [], "logit_rows": []},
        {key: value * (TOKENS + 1) for key, value in GOOD.items() if key not in ("page_table", "logit_rows")},
    ],
    ids=str,
)  # fmt: skip
def test_a_batch_that_points_outside_is_caught(change: dict[str, list[int]], llama: dict[str, Model]) -> None:
    runner = new_runner(llama["cpu"], "fp16")
    batch = Batch(**{key: np.array(value, np.int32) for key, value in (GOOD | change).items()})
    with pytest.raises(UsageError, match=r"a batch of \d+ rows cannot run: .*(token id|position|page|row|sequence)"):
        runner.forward(batch)


def test_logits_of_some_rows_or_none(llama: dict[str, Model]) -> None:
    runner, ids = new_runner(llama["cpu"], "fp16"), random_ids(20)
    every = in_chunks(runner, ids, [20])
    rows = np.arange(20, dtype=np.int32)
    some = runner.forward(Batch(ints(ids.tolist()), rows, 0 * rows, ints([0])[None], ints([19, 3])))
    assert torch.equal(some, every[[19, 3]])
    assert runner.forward(Batch(ints(ids.tolist()), rows, 0 * rows, ints([0])[None], ints([]))).shape == (0, VOCAB)


def test_a_runner_has_rows_and_sequences(llama: dict[str, Model]) -> None:
    with pytest.raises(UsageError, match="max_rows is 0"):
        Runner(llama["cpu"], KVCache(llama["cpu"].cache_layers, 1), 0, 1)
