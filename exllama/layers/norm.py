"""RMSNorm with a learned weight."""

from __future__ import annotations

import torch

from exllama.layers.module import TensorSource
from exllama.ops import Norm


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight. key: prefix of `.weight`; fused by its module into what follows it."""

    def __init__(self, key: str, size: int, eps: float) -> None:
        self.key, self.size, self.eps = key, size, eps
        self.weight: torch.Tensor | None = None

    def tensor_names(self) -> list[str]:
        return [f"{self.key}.weight"]

    def load(self, source: TensorSource) -> None:
        self.weight = source.vector(f"{self.key}.weight", self.size)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes if self.weight is not None else 0

    def norm(self) -> Norm:
        """This layer as an argument of Plan's operations."""
        assert self.weight is not None, f"{self.key} was recorded before it was loaded"
        return Norm(self.weight, self.eps)
