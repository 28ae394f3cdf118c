"""What a format is: how the bytes of a row become numbers, and which weight family holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from exllama.formats.stored import Bytes, Floats

Family = Literal["GroupAffine", "Dense"]


@dataclass(frozen=True)
class Format:
    """One element type of a file.

    dequantize: raw rows (rows, row_bytes) uint8 -> exact values (rows, K) float32.
    held: how a weight is packed: the block type itself for GroupAffine, a dtype for Dense.
    expanded: `held` is not what the file holds, because no kernel reads it; loading says so.
    """

    name: str
    family: Family
    held: str
    dequantize: Callable[[Bytes], Floats]
    expanded: bool = False
