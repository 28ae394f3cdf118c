"""A model on disk, whatever its file format: configuration, tensors by Hugging Face names, tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from exllama.formats.stored import StoredTensor
from exllama.tokenizer.tokenizer import Tokenizer


class Checkpoint(ABC):
    """An open model.

    path: the file or folder. config: the content of config.json, or the same thing translated from GGUF metadata.
    tensors: by Hugging Face name (`model.layers.0.self_attn.q_proj.weight`), in Hugging Face row order.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, with its chat template and stop tokens. Raises FormatError or UnsupportedModelError."""

    @abstractmethod
    def close(self) -> None:
        """Closes the files; tensors can not be read afterwards. Harmless when called twice."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
