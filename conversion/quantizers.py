"""The formats that can be written, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from exllama.errors import ConversionError

from .quantizer import Quantizer

# --format -> the module and the class in it
_QUANTIZERS = {"exl2": ("exl2", "Exl2Quantizer"), "exl3": ("exl3", "Exl3Quantizer")}
FORMATS = tuple(_QUANTIZERS)


def make_quantizer(name: str, codebook: str | None = None) -> Quantizer:
    """A quantizer with its usual settings. codebook: of EXL3, None for mul1. Raises ConversionError."""
    if name not in _QUANTIZERS:
        raise ConversionError(f"the format {name!r} cannot be written; there are {', '.join(FORMATS)}")
    if codebook is not None and name != "exl3":
        raise ConversionError(f"--codebook belongs to EXL3, and {name} has none")
    module, kind = _QUANTIZERS[name]
    options: dict[str, Any] = {} if codebook is None else {"codebook": codebook}
    try:
        found = import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        raise ConversionError(f"this version cannot write {name}") from error
    made: Quantizer = getattr(found, kind)(**options)
    return made
