"""What a quantizer is: a linear's weight and the second moments of its input go in, the tensors of a file come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Quantized:
    """One linear as a format stores it.

    tensors: the key after the module's name and its dot ("trellis", "q_weight") -> array as the file has it.
    weight: (out, in) float32, what the format's plain decoder makes of these tensors, unpadded.
    """

    tensors: Mapping[str, np.ndarray[Any, Any]]
    weight: torch.Tensor

    @property
    def bits(self) -> float:
        """Stored bits per weight, scales and padding included."""
        return 8 * sum(array.nbytes for array in self.tensors.values()) / self.weight.numel()


class Quantizer(Protocol):
    """One format that a conversion can write.

    name: as `--format` has it. rates: nominal bits per weight that can be asked for, ascending.
    """

    name: str
    rates: tuple[float, ...]

    def bits(self, out_features: int, in_features: int, rate: float) -> float:
        """Stored bits per weight that `quantize` will need at this rate, exactly, known before it runs."""
        ...

    def quantize(self, weight: torch.Tensor, hessian: torch.Tensor, rate: float, seed: int) -> Quantized:
        """weight: (out, in) float32, finite. hessian: (in, in) float32, the mean of x x^T over the rows x of the input.

        The hessian may be rank-deficient or zero. The same arguments give the same bytes, whatever the thread count.
        Raises ConversionError for a rate that is not offered or a shape that the format cannot hold.
        """
        ...

    def config(self, mean_bits: float, head_bits: float) -> dict[str, Any]:
        """The `quantization_config` of config.json, as the format's other readers expect it."""
        ...
