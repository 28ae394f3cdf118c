"""Rope, cache pages and paged attention of every level against reference.py, in one pass and in any chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from exllama import ops, reference
from exllama.errors import UsageError
from tests.ops.bench_plan import LEVELS, Array, nmse
from tests.ops.blocks import dense

TOKENS = 600
PAGES = np.array([[3, 1, 4, 0]], np.int32)


@dataclass(frozen=True)
class Case:
    heads: int
    kv_heads: int
    head_dim: int
    k_bits: int = 16
    v_bits: int = 16
    window: int | None = None
    softcap: float = 0.0
    norms: bool = False


CASES = {
    "grouped": Case(6, 2, 64),
    "window-and-norms": Case(4, 4, 32, window=40, norms=True),
    "one-kv-head-softcap": Case(8, 1, 64, window=300, softcap=20.0),
    "more-heads-than-a-task-holds": Case(20, 1, 32),
    "head-of-80": Case(3, 3, 80),
    "q4": Case(6, 2, 64, 4, 4),
    "q8": Case(6, 2, 64, 8, 8),
    "q6-window": Case(6, 2, 64, 6, 6, window=100),
    "k3v5-head-of-96": Case(6, 2, 96, 3, 5),
    "k2v7": Case(4, 2, 128, 2, 7),
    "k5v2": Case(2, 2, 32, 5, 2),
    "k7v3": Case(2, 2, 32, 7, 3),
    "k16v4": Case(2, 2, 32, 16, 4),
    "q4-head-of-80": Case(3, 3, 80, 4, 4),
    "q6-head-of-112-window": Case(4, 2, 112, 6, 6, window=100, softcap=20.0),
    "k8v16-head-of-48": Case(20, 1, 48, 8, 16),
    "k16v3-head-of-16": Case(2, 2, 16, 16, 3, norms=True),
}
# fp16 pages round alike on both sides, up to ties; the 15-bit query of packed keys costs 1e-9, codes that fall on the
# other side of a rounding boundary the rest.
BOUND = {True: 1e-9, False: 2e-7}


def attend(case: Case, plan: ops.CpuPlan | reference.ReferencePlan, cache: ops.LayerCache, chunks: list[int]) -> Array:
    """Outputs (TOKENS, H * D) for random q, k, v that reach the plan as rows of an embedding."""
    rng = np.random.default_rng(5)
    q_width, k_width = case.heads * case.head_dim, case.kv_heads * case.head_dim
    rows = rng.standard_normal((TOKENS, q_width + 2 * k_width)).astype(np.float32)
    identity = np.eye(rows.shape[1], dtype=np.float32)
    x, q, k, v, out = (plan.buffer(width) for width in (rows.shape[1], q_width, k_width, k_width, q_width))
    plan.embed(dense(rows), x)
    parts = np.split(identity, [q_width, q_width + k_width])
    plan.linear(x, [ops.Projection(dense(part), target) for part, target in zip(parts, (q, k, v), strict=True)])
    rope = ops.Rope(1.0 / 10000.0 ** (torch.arange(0, case.head_dim, 2).float() / case.head_dim))
    norm = ops.Norm(torch.linspace(0.5, 1.5, case.head_dim), 1e-6) if case.norms else None
    plan.rope_and_store(q, k, v, cache, rope, norm, norm)
    plan.attention(q, out, cache, case.head_dim**-0.5, case.window, case.softcap)
    plan.logits(out, dense(np.eye(q_width, dtype=np.float32)))
    results, at = [], 0
    for size in chunks:
        ids = np.arange(at, min(at + size, TOKENS), dtype=np.int32)
        at += len(ids)
        if len(ids):
            logits = plan.run(ids, ids, np.zeros_like(ids), PAGES, np.arange(len(ids), dtype=np.int32))
            results.append(logits.numpy().copy())
    return np.concatenate(results)


def on_cpu(case: Case, level: str, threads: int, chunks: list[int]) -> Array:
    cache = ops.layer_cache("cpu", 5, case.kv_heads, case.head_dim, case.k_bits, case.v_bits)
    return attend(case, ops.CpuPlan(512, threads, level), cache, chunks)


@pytest.mark.parametrize("name", CASES)
def test_against_the_reference_and_in_any_chunks(name: str) -> None:
    case = CASES[name]
    cache = ops.layer_cache("reference", 5, case.kv_heads, case.head_dim, case.k_bits, case.v_bits)
    expected = attend(case, reference.ReferencePlan(512, ops.Buffer), cache, [512, 512])
    for level in LEVELS:
        whole = on_cpu(case, level, 2, [512, 512])
        assert nmse(whole, expected) <= BOUND[case.k_bits == case.v_bits == 16], level
        pieces = on_cpu(case, level, 1, [300, 1, 1, 1, *[17] * 20])
        assert np.array_equal(whole, pieces), level
    # Few tasks and several pages: pages are shared out to the workers, then merged.
    singles = on_cpu(case, LEVELS[-1], 3, [512, 8, *[1] * 80])
    assert np.array_equal(whole, singles)


@pytest.mark.parametrize("head_dim", range(16, 144, 16))
def test_a_token_comes_back_as_it_was_stored(head_dim: int) -> None:
    """One token alone gives its own value: packed with 8 bits, within 2^-7 of the largest of 32 rotated features."""
    cache = ops.layer_cache("cpu", 5, 2, head_dim, 8, 8)
    plan = ops.CpuPlan(4, 1)
    width = 2 * head_dim
    rows = np.random.default_rng(2).standard_normal((4, width)).astype(np.float32)
    x, out = plan.buffer(width), plan.buffer(width)
    plan.embed(dense(rows), x)
    plan.rope_and_store(x, x, x, cache, None)
    plan.attention(x, out, cache, head_dim**-0.5)
    plan.logits(out, dense(np.eye(width, dtype=np.float32)))
    each = np.arange(4, dtype=np.int32)
    found = plan.run(each, 0 * each, each, each[:, None].copy(), each).numpy()
    bound = np.sqrt(32) * np.abs(rows).max() / 128 / 2
    assert 0 < np.abs(found - rows).max() < bound
    stored = reference.Pages(1, 2, head_dim, 8)
    slots = torch.arange(4)
    stored.write(torch.zeros(4, dtype=torch.int64), slots, torch.from_numpy(rows).view(4, 2, head_dim))
    assert np.abs(found - stored.read(torch.zeros(1, dtype=torch.int64))[:4].flatten(1).numpy()).max() < 1e-5


def test_stored_bytes_never_change() -> None:
    """Appending a token leaves the bytes of earlier ones alone, and other pages too."""
    case = CASES["q4"]
    long, short = (ops.layer_cache("cpu", 5, case.kv_heads, case.head_dim, 4, 4) for _ in range(2))
    attend(case, ops.CpuPlan(512, 2), long, [512, 88])
    attend(case, ops.CpuPlan(512, 2), short, [512])
    for page in (3, 1):
        assert np.array_equal(long.read_page(page), short.read_page(page))
        assert long.read_page(page).any()
    assert not long.read_page(2).any()


@pytest.mark.parametrize("field", ["position", "sequence", "page", "token", "order"])
def test_batches_that_would_corrupt_memory_are_refused(field: str) -> None:
    case = Case(2, 2, 32)
    plan, cache = ops.CpuPlan(8, 1), ops.layer_cache("cpu", 2, 2, 32)
    attend_arguments = {
        "ids": [0, 1],
        "positions": [0, 1],
        "sequences": [0, 0],
        "table": [[0, 1]],
    }
    changes = {
        "position": {"positions": [512, 513]},
        "sequence": {"sequences": [1, 1]},
        "page": {"table": [[7, 1]]},
        "token": {"ids": [0, 99999]},
        "order": {"positions": [1, 0]},
    }
    found = {
        "position": "row 0 is at position 512, but the page table ends at 512",
        "sequence": "row 0 belongs to sequence 1, but the page table has 1",
        "page": "sequence 0 has page 7, but the cache has 2",
        "token": "row 1 has token id 99999, expected 0 to 3, the vocabulary",
        "order": "row 1 is at position 0 after 1, expected positions of a sequence to ascend by one",
    }
    batch = {key: np.array(value, np.int32) for key, value in (attend_arguments | changes[field]).items()}
    x, q, k, v, out = (plan.buffer(64) for _ in range(5))
    plan.embed(dense(np.ones((4, 64), np.float32)), x)
    plan.linear(x, [ops.Projection(dense(np.eye(64, dtype=np.float32)), target) for target in (q, k, v)])
    plan.rope_and_store(q, k, v, cache, None)
    plan.attention(q, out, cache, case.head_dim**-0.5)
    plan.logits(out, dense(np.eye(64, dtype=np.float32)))
    with pytest.raises(UsageError, match=f"a batch of 2 rows cannot run: {found[field]}"):
        plan.run(batch["ids"], batch["positions"], batch["sequences"], batch["table"], np.array([1], np.int32))
