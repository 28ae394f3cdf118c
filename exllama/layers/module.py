"""What every module of a model's flat list can do, and what it is given to do it with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from exllama.ops import Buffer, LayerCache, Plan, Weight


class TensorSource(Protocol):
    """Where modules get their tensors. Every method raises FormatError when a tensor is absent or of another shape."""

    def weight(self, key: str, shape: tuple[int, int]) -> Weight:
        """The matrix `key + ".weight"`, (out_features, in_features)."""
        ...

    def vector(self, name: str, size: int) -> torch.Tensor:
        """(size,) float32."""
        ...


class Recording:
    """A forward pass being recorded: the plan, the residual stream, the layers' caches, shared scratch buffers."""

    def __init__(self, plan: Plan, hidden_size: int, caches: Sequence[LayerCache]) -> None:
        self.plan = plan
        self.hidden = plan.buffer(hidden_size)
        self._caches: Iterator[LayerCache] = iter(caches)
        self._scratch: dict[tuple[str, int], Buffer] = {}

    def scratch(self, role: str, width: int) -> Buffer:
        """A buffer that all modules asking for the same role and width share; valid inside one module alone."""
        if (role, width) not in self._scratch:
            self._scratch[role, width] = self.plan.buffer(width)
        return self._scratch[role, width]

    def next_cache(self) -> LayerCache:
        """The cache of the next attention layer, in the order of the model."""
        return next(self._caches)


class Module(ABC):
    """One step of the flat list. key: the prefix of its tensors, as in `model.layers.0.mlp`."""

    key: str

    @abstractmethod
    def tensor_names(self) -> list[str]:
        """Names of all tensors that `load` asks for, in that order."""

    @abstractmethod
    def load(self, source: TensorSource) -> None:
        """Reads the tensors; called once."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the loaded tensors; 0 before `load`."""

    @abstractmethod
    def record(self, recording: Recording) -> None:
        """Records the computation: reads and writes `recording.hidden`."""
