"""What the formats see of a checkpoint: named tensors whose raw rows can be read. The loader implements it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class StoredTensor(Protocol):
    """A tensor as a file holds it."""

    @property
    def name(self) -> str:
        """The Hugging Face name, whatever the file calls it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """In torch's order: a linear layer is (out_features, in_features)."""
        ...

    @property
    def type(self) -> str:
        """How elements are stored: "F32", "F16", "BF16", "F8_E4M3", "Q4_0", ..."""
        ...

    @property
    def nbytes(self) -> int: ...

    @property
    def file(self) -> Path: ...

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Raw bytes of rows start .. stop - 1, (stop - start, row_bytes) uint8; a vector or scalar is one row.

        Reads just these bytes from the file. Raises FormatError when the file has become shorter.
        """
        ...


class TensorStore(Protocol):
    """A checkpoint, reduced to what reading a weight needs."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json, or the same thing from other metadata."""
        ...

    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...
