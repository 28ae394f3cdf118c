"""A linear layer: a weight of any family and an optional bias."""

from __future__ import annotations

import torch

from exllama.layers.module import TensorSource
from exllama.ops import Buffer, Projection, Weight


class Linear:
    """y = x @ weight.T + bias. key: prefix of `.weight` and `.bias`; part of a module, recorded by it."""

    def __init__(self, key: str, in_features: int, out_features: int, bias: bool = False) -> None:
        self.key, self.in_features, self.out_features, self.has_bias = key, in_features, out_features, bias
        self.weight: Weight | None = None
        self.bias: torch.Tensor | None = None

    def tensor_names(self) -> list[str]:
        return [f"{self.key}.weight"] + ([f"{self.key}.bias"] if self.has_bias else [])

    def load(self, source: TensorSource) -> None:
        self.weight = source.weight(self.key, (self.out_features, self.in_features))
        if self.has_bias:
            self.bias = source.vector(f"{self.key}.bias", self.out_features)

    @property
    def nbytes(self) -> int:
        return (self.weight.nbytes if self.weight else 0) + (self.bias.nbytes if self.bias is not None else 0)

    def projection(self, out: Buffer, add: bool = False) -> Projection:
        """This layer as an argument of Plan.linear."""
        assert self.weight is not None, f"{self.key} was recorded before it was loaded"
        return Projection(self.weight, out, self.bias, add)
