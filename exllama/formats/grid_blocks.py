"""IQ1, IQ2, IQ3: indices into large grids. The `gguf` package, which is optional, has the grids and decodes them."""

from __future__ import annotations

import numpy as np

from exllama.errors import UnsupportedModelError
from exllama.formats.format import Format
from exllama.formats.stored import Bytes, Floats

_NAMES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def _decode(raw: Bytes, name: str) -> Floats:
    try:
        import gguf
    except ImportError as error:
        message = f"weights of type {name} are decoded by the gguf package, which is not installed: pip install gguf"
        raise UnsupportedModelError(message) from error
    values = gguf.dequantize(np.ascontiguousarray(raw), gguf.GGMLQuantizationType[name])
    return np.asarray(values, np.float32).reshape(len(raw), -1)


def _format(name: str) -> Format:
    return Format(name, "Dense", "float16", lambda raw: _decode(raw, name), expanded=True)


FORMATS = {name: _format(name) for name in _NAMES}
