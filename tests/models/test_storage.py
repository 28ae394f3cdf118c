"""The KV cache's bytes: names, predicted and allocated sizes, copies, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from exllama.cache.storage import CacheLayer, KVCache, cache_nbytes, parse_kind
from exllama.engine.batch import Batch
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.errors import UsageError
from tests.models.toys import DEVICES, random_ids

PAIRS = [f"{k},{v}" for k in (2, 3, 4, 5, 6, 7, 8) for v in (2, 3, 4, 5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("fp16", (16, 16)), ("FP16", (16, 16)), ("q8", (8, 8)), ("Q6", (6, 6)), ("q4", (4, 4)), ("8,4", (8, 4)),
     (" 4 , 3 ", (4, 3)), ("16,5", (16, 5)), ("k8v4", (8, 4)), ("K4V3", (4, 3)), ("k16v2", (16, 2)), ("q5", (5, 5)),
     ("q2", (2, 2))],
)  # fmt: skip
def test_names(kind: str, bits: tuple[int, int]) -> None:
    assert parse_kind(kind) == bits


WRONG = ["", "q1", "q9", "q16", "k4", "v4", "4v4", "k4,4", "k4v1", "k4v9", "fp8", "4", "4,4,4", "1,4", "9,4", "4,-4"]


@pytest.mark.parametrize("kind", [*WRONG, "a,b", "16;16"])
def test_other_names_are_refused_with_the_list(kind: str) -> None:
    with pytest.raises(UsageError, match="fp16, q8, q6, q4"):
        parse_kind(kind)


# KiB per token of the three shapes in the design of the cache: (layers, kv heads, head_dim).
SIZES = {
    (16, 8, 64): {"fp16": 32, "q8": 17, "q6": 13, "8,4": 13, "5,5": 11, "q4": 9, "4,3": 8, "3,3": 7, "2,2": 5},
    (32, 8, 128): {"fp16": 128, "q8": 68, "q6": 52, "8,4": 52, "5,5": 44, "q4": 36, "4,3": 32, "3,3": 28, "2,2": 20},
    (80, 8, 128): {"fp16": 320, "q8": 170, "q6": 130, "8,4": 130, "5,5": 110, "q4": 90, "4,3": 80, "3,3": 70},
}


@pytest.mark.parametrize("shape", SIZES)
def test_sizes_of_real_models(shape: tuple[int, int, int]) -> None:
    layers, heads, head_dim = shape
    for kind, kib in SIZES[shape].items():
        assert cache_nbytes([CacheLayer(heads, head_dim)] * layers, 3, kind) == 3 * 256 * kib * 1024


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["fp16", *PAIRS, "16,3", "6,16"])
def test_predicted_bytes_are_allocated(kind: str, device: str) -> None:
    layers = [CacheLayer(2, 64, device), CacheLayer(1, 96, device), CacheLayer(3, 80, device)]
    assert KVCache(layers, 3, kind).nbytes == cache_nbytes(layers, 3, kind) > 0


@pytest.mark.parametrize("device", DEVICES)
def test_head_sizes(device: str) -> None:
    """Heads of 80 take the place of 96 where keys or values are packed."""
    layers = [CacheLayer(2, 80, device)]
    tokens = 256 * 2
    half, packed = tokens * 96 * 2, tokens * (96 // 2 + 3 * 2)
    sizes = {"fp16": 2 * tokens * 80 * 2, "q4": 2 * packed, "16,4": half + packed, "4,16": packed + half}
    for kind, nbytes in sizes.items():
        assert KVCache(layers, 1, kind).nbytes == cache_nbytes(layers, 1, kind) == nbytes


def test_odd_head_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"heads of 40 .* multiple of 16"):
        KVCache([CacheLayer(2, 40)], 1, "q4")


def test_fp32_is_for_the_reference_device() -> None:
    assert KVCache([CacheLayer(1, 64, "reference")], 1, "fp32").nbytes == 2 * 256 * 64 * 4
    with pytest.raises(UsageError, match="reference device"):
        KVCache([CacheLayer(1, 64, "cpu")], 1, "fp32")


def test_a_cache_has_pages() -> None:
    with pytest.raises(UsageError, match="0 pages"):
        KVCache([CacheLayer(1, 64)], 0)


@pytest.mark.parametrize(("kind", "warned"), [("3,8", True), ("2,2", True), ("4,2", False), ("fp16", False)])
def test_keys_below_four_bits_warn(kind: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        KVCache([CacheLayer(1, 32)], 1, kind)
    assert ("below 4 bits" in caplog.text) == warned


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["fp16", "q8", "4,3"])
@pytest.mark.parametrize("by", ["copy", "bytes"])
def test_a_copied_page_serves_as_well(by: str, kind: str, device: str, llama: dict[str, Model]) -> None:
    model, ids = llama[device], random_ids(40).numpy().astype(np.int32)
    cache = KVCache(model.cache_layers, 2, kind)
    runner = Runner(model, cache, 40, 1)
    rows = np.arange(40, dtype=np.int32)

    def forward(begin: int, end: int, page: int) -> np.ndarray:
        part = slice(begin, end)
        table = np.array([[page]], np.int32)
        last = np.array([end - begin - 1], np.int32)
        return runner.forward(Batch(ids[part], rows[part], np.zeros(end - begin, np.int32), table, last)).numpy().copy()

    forward(0, 39, 0)
    if by == "copy":
        cache.copy_page(0, 1)
    else:
        data = cache.read_page(0)
        assert data.nbytes == cache.page_nbytes
        cache.write_page(1, data)
        cache.poison_page(0)
        assert (cache.read_page(0) == 0xFF).all()
        assert np.array_equal(cache.read_page(1), data)
    from_copy = forward(39, 40, 1)
    forward(0, 20, 0)
    assert np.array_equal(from_copy, forward(39, 40, 1))
    assert not np.array_equal(from_copy, forward(0, 1, 0))
