"""F8_E4M3 and F8_E5M2 (OCP 8-bit floating point), held as float16, which represents every value of both exactly.

Their scales are tensors of their own; see load.py.
"""

from __future__ import annotations

import numpy as np

from exllama.formats.format import Format
from exllama.formats.stored import Bytes, Floats


def _e4m3_table() -> Floats:
    """Sign, 4 bits of exponent with bias 7, 3 of mantissa; all ones is NaN, and there is no infinity."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


_E4M3 = _e4m3_table()


def _e4m3(raw: Bytes) -> Floats:
    return _E4M3[raw]


def _e5m2(raw: Bytes) -> Floats:
    """The upper half of a float16."""
    return (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32)


FORMATS = {
    "F8_E4M3": Format("F8_E4M3", "Dense", "float16", _e4m3, expanded=True),
    "F8_E5M2": Format("F8_E5M2", "Dense", "float16", _e5m2, expanded=True),
}
