"""exllama: an inference engine for quantized language models, on the machine that you have.

The names of `__all__` are the public surface. Each is imported when it is first used: `import exllama` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from exllama.errors import NO_TORCH

if TYPE_CHECKING:
    from exllama.engine.model import Model
    from exllama.errors import (
        BuildError,
        ConstraintError,
        ContextError,
        DeviceError,
        ExllamaError,
        FormatError,
        NumericsError,
        QueueFull,
        SourceError,
        TemplateError,
        UnsupportedModelError,
        UsageError,
    )
    from exllama.generator.async_generator import AsyncGenerator
    from exllama.generator.constraints import Grammar
    from exllama.generator.events import Event, Finished, Prefill, Started, Text, Times
    from exllama.generator.generator import Generator
    from exllama.generator.job import Job
    from exllama.generator.sampling import Sampling
    from exllama.tokenizer.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "AsyncGenerator", "BuildError", "ConstraintError", "ContextError", "DeviceError", "Event", "ExllamaError",
    "Finished", "FormatError", "Generator", "Grammar", "Job", "Model", "NumericsError", "Prefill", "QueueFull",
    "Sampling", "SourceError", "Started", "TemplateError", "Text", "Times", "Tokenizer", "UnsupportedModelError",
    "UsageError", "__version__",
]  # fmt: skip

_HOMES = {
    "AsyncGenerator": "exllama.generator.async_generator",
    "Generator": "exllama.generator.generator",
    "Grammar": "exllama.generator.constraints",
    "Job": "exllama.generator.job",
    "Sampling": "exllama.generator.sampling",
    "Model": "exllama.engine.model",
    "Tokenizer": "exllama.tokenizer.tokenizer",
    **dict.fromkeys(("Event", "Finished", "Prefill", "Started", "Text", "Times"), "exllama.generator.events"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'exllama' has no attribute {name!r}")
    try:
        value: object = getattr(import_module(_HOMES.get(name, "exllama.errors")), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(NO_TORCH) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
