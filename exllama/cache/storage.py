"""The bytes of the KV cache: for every attention layer the pages of K and V, in fp16 or packed to 2 to 8 bits."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exllama import ops
from exllama.errors import UsageError
from exllama.reference import GROUP, padded_dim

_NAMES = {"fp32": (32, 32), "fp16": (16, 16)} | {f"q{bits}": (bits, bits) for bits in range(2, 9)}
_PAIR = re.compile(r"k?(?P<k>[2-8]|16)\s*[,v]\s*(?P<v>[2-8]|16)", re.ASCII)
_log = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class CacheLayer:
    """What one attention layer stores per token: num_kv_heads vectors of head_dim for K and as many for V."""

    num_kv_heads: int
    head_dim: int
    device: str = "cpu"


class KVCache:
    """Pages of 256 tokens for all layers of a model. What page holds what is the affair of cache/pages.py.

    kind: "fp16", "q8", "q6" (6 bits for both; exllamav2 calls "8,4" so), "q4", ... "q2", or the bits of keys and values
    apart, 2 to 8 or 16 each, as in "k8v4" or "8,4"; "fp32" on the reference device alone. Where anything is packed,
    heads are filled up with zeros to a multiple of 32 features.

    Raises UsageError for a kind that the device cannot have.
    """

    def __init__(self, layers: Sequence[CacheLayer], num_pages: int, kind: str = "fp16") -> None:
        if num_pages < 1:
            raise UsageError(f"a cache of {num_pages} pages was asked for, expected at least 1")
        self.kind, self.num_pages = kind, num_pages
        self.k_bits, self.v_bits = parse_kind(kind)
        for layer in layers:
            if max(self.k_bits, self.v_bits) == 32 and layer.device != "reference":
                raise UsageError("cache=fp32 exists on the reference device alone: use cache=fp16")
        if self.k_bits < 4:
            _log.warning(
                "keys of %d bits: below 4 bits answers get worse (HumanEval of an 8B model: 70 %% with 4-bit keys, "
                "61 %% with 3, 27 %% and less with 2); values may have 3 bits, as in cache=4,3",
                self.k_bits,
            )
        self.layers = [
            ops.layer_cache(layer.device, num_pages, layer.num_kv_heads, layer.head_dim, self.k_bits, self.v_bits)
            for layer in layers
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens that all pages hold."""
        return self.num_pages * ops.PAGE_SIZE

    @property
    def nbytes(self) -> int:
        """Bytes allocated, equal to cache_nbytes of the same arguments."""
        return sum(layer.nbytes for layer in self.layers)

    def copy_page(self, src: int, dst: int) -> None:
        """Makes page dst of every layer equal to page src."""
        for layer in self.layers:
            layer.copy_page(src, dst)

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page in all layers."""
        return self.nbytes // self.num_pages

    def read_page(self, page: int) -> Bytes:
        """A copy of what all layers hold in a page, (page_nbytes,) uint8. Means something to this cache kind alone."""
        return np.concatenate([layer.read_page(page) for layer in self.layers])

    def write_page(self, page: int, data: Bytes) -> None:
        """Gives a page the bytes that read_page returned, here or in a cache of the same layers and kind."""
        assert data.nbytes == self.page_nbytes, "the bytes of a page are of another cache"
        begin = 0
        for layer in self.layers:
            end = begin + layer.nbytes // self.num_pages
            layer.write_page(page, data[begin:end])
            begin = end

    def poison_page(self, page: int) -> None:
        """Fills a page with NaN: every float and every scale that is read from it is one."""
        for layer in self.layers:
            layer.write_page(page, np.full(layer.nbytes // self.num_pages, 0xFF, np.uint8))

    @property
    def geometry(self) -> dict[str, Any]:
        """What read_page's bytes depend on, apart from the model: plain values, to be compared."""
        layers = [[layer.num_kv_heads, layer.head_dim, type(layer).__name__] for layer in self.layers]
        return {"k_bits": self.k_bits, "v_bits": self.v_bits, "page_size": ops.PAGE_SIZE, "layers": layers}


def parse_kind(kind: str) -> tuple[int, int]:
    """The bits of K and V that a name means; upper case is accepted too."""
    text = kind.strip().lower()
    if text in _NAMES:
        return _NAMES[text]
    pair = _PAIR.fullmatch(text)
    if pair is None or text.startswith("k") != ("v" in text):
        expected = "fp16, q8, q6, q4 (q2 to q8), or bits of keys and values as in k8v4 or 8,4 (2 to 8 or 16 each)"
        raise UsageError(f"the cache kind is {kind!r}, expected {expected}")
    return int(pair["k"]), int(pair["v"])


def cache_nbytes(layers: Sequence[CacheLayer], num_pages: int, kind: str = "fp16") -> int:
    """Bytes of a cache before it is made: codes and scales of whole pages."""
    return num_pages * sum(_page_nbytes(layer, *parse_kind(kind)) for layer in layers)


def _page_nbytes(layer: CacheLayer, k_bits: int, v_bits: int) -> int:
    width = padded_dim(layer.head_dim, k_bits, v_bits)
    vector = sum(width * bits // 8 + (width // GROUP * 2 if bits <= 8 else 0) for bits in (k_bits, v_bits))
    return ops.PAGE_SIZE * layer.num_kv_heads * vector
