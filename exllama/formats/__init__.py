"""How a weight is stored: one module per family of formats, found by the registry."""

from exllama.formats.load import load_vector, load_weight

__all__ = ["load_vector", "load_weight"]
