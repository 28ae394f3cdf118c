"""exllama: an inference engine for quantized language models, on the machine that you have.

The names of `__all__` are the public surface. Each is imported when it is first used: `import exllama` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

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

if find_spec("torch") is None:
    raise ImportError(
        "exllama needs PyTorch 2.6 or newer and leaves the choice of its build to you: "
        "pip install torch==2.13.0, or the one for your GPU"
    )

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
    value: object = getattr(import_module(_HOMES.get(name, "exllama.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
