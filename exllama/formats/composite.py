"""What a format is whose matrices are several tensors each: `key.trellis`, `key.suh`, ... instead of `key.weight`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from exllama.formats.stored import StoredTensor, TensorStore
from exllama.ops import Weight

Expand = Literal["float32"]
Load = Callable[[TensorStore, str, tuple[int, int], str, Expand | None], Weight]


def _always(tensors: Mapping[str, StoredTensor], key: str) -> bool:
    return True


@dataclass(frozen=True)
class Composite:
    """A format, decided for each matrix from the names of its tensors.

    marker: the part that every matrix of this format has, and few others. parts: all that may belong to one, marker
    included. load(store, key, (out_features, in_features), device, expand): reads, checks and packs a matrix; raises
    FormatError. padding: features are stored in multiples of this many, and so may a bias be. expanded: no kernel reads
    it, and it is held as float32. accepts(tensors, key): whether a matrix with this marker is of this format.
    """

    name: str
    marker: str
    parts: tuple[str, ...]
    load: Load
    padding: int = 1
    expanded: bool = False
    accepts: Callable[[Mapping[str, StoredTensor], str], bool] = _always

    def padded(self, features: int) -> int:
        """Features as stored."""
        return -(-features // self.padding) * self.padding

    def names(self, key: str) -> list[str]:
        """Every tensor that may belong to the matrix."""
        return [f"{key}.{part}" for part in self.parts]
