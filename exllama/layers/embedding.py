"""The token embedding, first of the flat list."""

from __future__ import annotations

from exllama.layers.linear import Linear
from exllama.layers.module import Module, Recording, TensorSource


class Embedding(Module):
    """hidden = table[token_ids] * multiplier. The table may serve as output head too (see Head)."""

    def __init__(self, key: str, vocab_size: int, hidden_size: int, multiplier: float = 1.0) -> None:
        self.key, self.vocab_size, self.multiplier = key, vocab_size, multiplier
        self.table = Linear(key, hidden_size, vocab_size)

    def tensor_names(self) -> list[str]:
        return self.table.tensor_names()

    def load(self, source: TensorSource) -> None:
        self.table.load(source)

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def record(self, recording: Recording) -> None:
        table = self.table.projection(recording.hidden).weight
        recording.plan.embed(table, recording.hidden, self.multiplier)
