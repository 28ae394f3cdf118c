"""How a weight is stored: one module per family of formats, found by the registry."""

from exllama.formats.load import load_vector, load_weight
from exllama.formats.registry import find_composite, stored_names

__all__ = ["find_composite", "load_vector", "load_weight", "stored_names"]
