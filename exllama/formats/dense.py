"""F32, F16, BF16: little-endian numbers, as torch and GGUF store them."""

from __future__ import annotations

import numpy as np

from exllama.formats.format import Format
from exllama.formats.stored import Bytes, Floats


def _f32(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view("<f4")


def _f16(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _bf16(raw: Bytes) -> Floats:
    """The upper half of a float32."""
    return (np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << 16).view(np.float32)


FORMATS = {
    "F32": Format("F32", "Dense", "float32", _f32),
    "F16": Format("F16", "Dense", "float16", _f16),
    "BF16": Format("BF16", "Dense", "bfloat16", _bf16),
}
