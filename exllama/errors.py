"""Every error that exllama raises on purpose: one tree, one way of saying it.

A message says what was found, what was expected, and what to do. `assert` is kept for our own bugs.
"""

from __future__ import annotations

NO_TORCH = (
    "exllama needs PyTorch 2.6 or newer and leaves the choice of its build to you: "
    "pip install torch==2.13.0, or the one for your GPU"
)


class ExllamaError(Exception):
    """Base of every error raised on purpose."""


class UsageError(ExllamaError, ValueError):
    """A call, flag or setting that cannot mean anything; the message names the argument and its range."""

    def __init__(self, message: str) -> None:
        """Shows of a long value, which may come from anybody, the beginning and the end."""
        super().__init__(message if len(message) <= 1500 else f"{message[:900]} ... {message[-500:]}")


class SourceError(ExllamaError):
    """A model source that cannot be resolved: missing folder, failed download, wrong checksum."""


class FormatError(ExllamaError):
    """A file that does not hold what its format promises. Files are hostile: this is the answer to all of them.

    file, field: where the defect is; found, expected: what was there and what should have been.
    """

    def __init__(self, file: object, field: str, found: object, expected: object, hint: str = "") -> None:
        self.file, self.field, self.found, self.expected = str(file), field, found, expected
        where = f"{_short(self.file, 1000)}: {_short(field)}"  # names come from files too
        text = f"{where}: found {_short(found)}, expected {_short(expected)}"
        super().__init__(f"{text}. {hint}" if hint else text)


class UnsupportedModelError(ExllamaError):
    """A model_type, tensor type or option that this version does not run; the message lists what it does."""


class ContextError(ExllamaError, ValueError):
    """A prompt that does not fit; carries the exact counts and is never answered by cutting silently."""

    def __init__(self, prompt_tokens: int, limit: int, what: str = "context") -> None:
        self.prompt_tokens, self.limit = prompt_tokens, limit
        super().__init__(
            f"the prompt has {prompt_tokens} tokens, but the {what} holds {limit}, and an answer needs one more: "
            f"shorten the prompt by {prompt_tokens - limit + 1} tokens or raise cache_tokens"
        )


class QueueFull(ExllamaError):
    """So many jobs wait already that one more would only wait too long; carries the counts."""

    def __init__(self, waiting: int, running: int) -> None:
        self.waiting, self.running = waiting, running
        super().__init__(
            f"{waiting} jobs wait beside {running} that run, and the queue holds no more: try again when some have "
            "finished, or raise max_queue"
        )


class DeviceError(ExllamaError):
    """A device that is absent, unusable, or lacks what an operation needs."""


class BuildError(ExllamaError):
    """The native extension is missing and could not be built; the message names the missing tool."""


class NumericsError(ExllamaError):
    """NaN or infinity where a number belongs; names the request and the place."""


def cache_fault(position: int, layer: str) -> NumericsError:
    """A key or value of the token at `position` that `layer` cannot store."""
    return NumericsError(
        f"a key or value of {layer} at position {position} is NaN, infinite or beyond what the cache can hold (65504): "
        "the model's weights are damaged or were converted to a type with too small a range"
    )


class ConstraintError(ExllamaError):
    """No token can continue an answer as its grammar wants, or finding one takes too long; ends that job alone."""


class TemplateError(ExllamaError):
    """A chat template that is malformed, unsafe, too slow or too long in its output."""


def _short(value: object, limit: int = 200) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= limit else text[: limit - 3] + "..."


class ConversionError(ExllamaError):
    """A conversion that cannot begin or go on: an unsuitable model, rate, calibration text or output folder."""
