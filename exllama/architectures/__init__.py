"""One file per Hugging Face model_type, named after it; found by name, imported when a model asks for it.

A file `architectures/NAME.py` makes model_type NAME known. It offers

    read_config(config: ConfigReader) -> DecoderConfig, or a dataclass of its own with the same general fields
    build(config, context: int) -> list[Module]
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.decoder import DecoderConfig
from exllama.errors import UnsupportedModelError
from exllama.formats.registry import QUANT_METHODS
from exllama.layers.module import Module


class Architecture(Protocol):
    """What a file of this package offers."""

    def read_config(self, config: ConfigReader) -> DecoderConfig:
        """Raises FormatError for values that are missing or impossible, UnsupportedModelError for others it lacks."""
        ...

    def build(self, config: DecoderConfig, context: int) -> list[Module]:
        """The flat module list, for sequences of up to `context` tokens."""
        ...


def model_types() -> list[str]:
    """Every model_type that can be run."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def find_architecture(config: ConfigReader) -> Architecture:
    """The architecture that `model_type` names. Raises UnsupportedModelError with the list of those there are."""
    model_type = config.text("model_type")
    if model_type not in model_types():
        supported = ", ".join(model_types())
        found = f"model_type {model_type[:100]!r} is not supported"
        raise UnsupportedModelError(f"{config.file}: {found}; supported: {supported}")
    if config.has("quantization_config"):
        config.section("quantization_config").require("quant_method", QUANT_METHODS, model_type)
    return cast(Architecture, importlib.import_module(f"{__name__}.{model_type}"))
