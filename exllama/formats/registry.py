"""Every way to store a matrix that can be loaded, and the module that knows it, imported when first needed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from exllama.errors import UnsupportedModelError
from exllama.formats.composite import Composite
from exllama.formats.format import Format
from exllama.formats.stored import StoredTensor

# Values of quant_method in config.json that are known; what a matrix is follows from its tensors alone.
QUANT_METHODS = ("fp8", "compressed-tensors", "exl3", "exl2", "gptq", "awq")

_MODULES: dict[str, tuple[str, ...]] = {
    "dense": ("F32", "F16", "BF16"),
    "float8": ("F8_E4M3", "F8_E5M2"),
    "legacy_blocks": ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    "k_blocks": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    "table_blocks": ("IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"),
    "grid_blocks": ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

TYPES = tuple(_MODULE_OF)

# Formats of several tensors for each matrix: the tensor that tells, and the modules; the first that accepts it reads.
_COMPOSITES = {"trellis": ("exl3",), "q_weight": ("exl2",), "qweight": ("awq", "gptq")}


def find_format(name: str) -> Format:
    """The format of an element type. Raises UnsupportedModelError, listing what there is."""
    if name not in _MODULE_OF:
        raise UnsupportedModelError(f"weights of type {name} are not supported; supported: {', '.join(TYPES)}")
    module = import_module(f"exllama.formats.{_MODULE_OF[name]}")
    formats: dict[str, Format] = module.FORMATS
    return formats[name]


def find_composite(tensors: Mapping[str, StoredTensor], key: str) -> Composite | None:
    """The format whose tensors the matrix `key` consists of; None for a single tensor `key.weight`."""
    for marker, modules in _COMPOSITES.items():
        for module in modules if f"{key}.{marker}" in tensors else ():
            composite: Composite = import_module(f"exllama.formats.{module}").COMPOSITE
            if composite.accepts(tensors, key):
                return composite
    return None


def stored_names(tensors: Mapping[str, StoredTensor], key: str) -> list[str]:
    """The tensors that the matrix `key` is read from."""
    composite = find_composite(tensors, key)
    if composite is None:
        return [f"{key}.weight"]
    return [name for name in composite.names(key) if name in tensors]
