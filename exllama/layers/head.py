"""The end of the flat list: final norm and the projection to the vocabulary."""

from __future__ import annotations

from exllama.layers.embedding import Embedding
from exllama.layers.linear import Linear
from exllama.layers.module import Module, Recording, TensorSource
from exllama.layers.norm import RMSNorm


class Head(Module):
    """logits = norm(hidden) @ weight.T. source: the embedding whose table it shares, or a linear layer of its own."""

    def __init__(self, norm: RMSNorm, source: Embedding | Linear, softcap: float = 0.0) -> None:
        self.key = source.key
        self.norm, self.softcap = norm, softcap
        self.own = source if isinstance(source, Linear) else None
        self.weights = source if isinstance(source, Linear) else source.table

    def tensor_names(self) -> list[str]:
        return self.norm.tensor_names() + (self.own.tensor_names() if self.own else [])

    def load(self, source: TensorSource) -> None:
        self.norm.load(source)
        if self.own:
            self.own.load(source)

    @property
    def nbytes(self) -> int:
        return self.norm.nbytes + (self.own.nbytes if self.own else 0)

    def record(self, recording: Recording) -> None:
        weight = self.weights.projection(recording.hidden).weight
        recording.plan.logits(recording.hidden, weight, self.norm.norm(), self.softcap)
