"""The model to convert: its modules one at a time, with float32 matrices that can be replaced."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from exllama import architectures, formats
from exllama.architectures.common.config import ConfigReader
from exllama.engine.fingerprint import fingerprint
from exllama.engine.weights import has_own_head
from exllama.errors import ConversionError
from exllama.layers.module import Module
from exllama.loader.progress import Progress
from exllama.loader.sources import open_checkpoint
from exllama.tokenizer.tokenizer import Tokenizer

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
# Their quantizers have already decided which of the source's digits matter.
_QUANTIZED = ("exl2", "exl3", "gptq", "awq")
_FLOATS = ("F64", "F32", "F16", "BF16")
_log = logging.getLogger("exllama")


class Matrix:
    """A weight under its name, (out_features, in_features) float32, that can be replaced by another."""

    def __init__(self, key: str, values: torch.Tensor) -> None:
        self.key, self.values = key, values
        self.out_features, self.in_features = values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def dequantize(self) -> torch.Tensor:
        """See ops.Weight."""
        return self.values.cpu()


class SourceModel:
    """An open model. Modules are handed out empty; `load` fills one. device: where matrices are put, as torch names it.

    Raises ConversionError for a model that is already quantized for good (unless `requantize`), and loading errors.
    """

    def __init__(
        self,
        source: str | Path,
        device: str = "cpu",
        context: int = 2048,
        requantize: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.device = _device(device)
        self.checkpoint = open_checkpoint(source, progress)
        try:
            self._refuse_quantized(requantize)
            reader = ConfigReader(self.checkpoint.path, self.checkpoint.config)
            self._architecture = architectures.find_architecture(reader)
            config = self._architecture.read_config(reader)
            self._tied = config.tied_head and not has_own_head(self.checkpoint)
            self.config = replace(config, tied_head=False)  # a quantized head is a matrix of its own
            self.context = min(context, config.max_position)
        except BaseException:
            self.checkpoint.close()
            raise

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Read when first asked for. Raises what Checkpoint.load_tokenizer does."""
        return self.checkpoint.load_tokenizer()

    def modules(self) -> list[Module]:
        """The flat list, nothing loaded."""
        return self._architecture.build(self.config, self.context)

    def load(self, module: Module) -> dict[str, Matrix]:
        """Fills a module; its matrices by name, those that share an input side by side, the embedding's table too.

        Raises ConversionError naming a matrix with NaN or infinity, FormatError for missing or misshaped tensors.
        """
        tensors = _Tensors(self, self._tied)
        module.load(tensors)
        return tensors.matrices

    def fingerprint(self) -> str:
        """32 hex digits that say which weights these are."""
        return fingerprint(self.checkpoint)

    def close(self) -> None:
        """Closes the files."""
        self.checkpoint.close()

    def __enter__(self) -> SourceModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _refuse_quantized(self, requantize: bool) -> None:
        section = self.checkpoint.config.get("quantization_config") or {}
        method = section.get("quant_method") if isinstance(section, dict) else None
        if method in _QUANTIZED and not requantize:
            found = f"{self.checkpoint.path} is already quantized ({method})"
            advice = "Convert the model that it was made from, or go on with --requantize, which adds up both errors"
            raise ConversionError(f"{found}. {advice}")
        types = {tensor.type for tensor in self.checkpoint.tensors.values() if len(tensor.shape) == 2}
        coarse = sorted(kind for kind in types if kind not in _FLOATS)
        if coarse and method not in _QUANTIZED:
            advice = "its rounding errors are kept, and the conversion's are added"
            _log.warning("%s holds weights as %s: %s", self.checkpoint.path, ", ".join(coarse), advice)


def _device(name: str) -> torch.device:
    """The device, after a try: torch finds out late what it cannot use."""
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(f"torch cannot compute on {name!r}: {reason[:200]}. Use --device cpu") from error


class _Tensors:
    """The TensorSource of layers/module.py that keeps the matrices it hands out. `tied`: the head is the embedding."""

    def __init__(self, model: SourceModel, tied: bool) -> None:
        self._model, self._tied = model, tied
        self.matrices: dict[str, Matrix] = {}

    def weight(self, key: str, shape: tuple[int, int]) -> Matrix:
        """See TensorSource."""
        stored = EMBEDDING if key == HEAD and self._tied else key
        weight = formats.load_weight(self._model.checkpoint, stored, shape, "reference", "float32")
        values = weight.dequantize()
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            advice = "The file is damaged, or the model was trained to that: get another copy of it"
            raise ConversionError(f"{stored}.weight holds {bad} values that are NaN or infinite. {advice}")
        matrix = Matrix(key, values.to(self._model.device))
        self.matrices[key] = matrix
        return matrix

    def vector(self, name: str, size: int) -> torch.Tensor:
        """See TensorSource."""
        values = formats.load_vector(self._model.checkpoint, name, size)
        if not torch.isfinite(values).all():
            raise ConversionError(f"{name} holds values that are NaN or infinite: get another copy of the model")
        return values.to(self._model.device)
