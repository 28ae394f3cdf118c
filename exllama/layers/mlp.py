"""The gated feed-forward half of a transformer block."""

from __future__ import annotations

from exllama.layers.linear import Linear
from exllama.layers.module import Module, Recording, TensorSource
from exllama.layers.norm import RMSNorm
from exllama.ops import Activation


class GatedMLP(Module):
    """hidden += down(activation(gate(norm(hidden))) * up(norm(hidden)))."""

    def __init__(
        self,
        key: str,
        norm: RMSNorm,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation,
        bias: bool = False,
    ) -> None:
        self.key, self.norm, self.activation, self.intermediate_size = key, norm, activation, intermediate_size
        self.gate = Linear(f"{key}.gate_proj", hidden_size, intermediate_size, bias)
        self.up = Linear(f"{key}.up_proj", hidden_size, intermediate_size, bias)
        self.down = Linear(f"{key}.down_proj", intermediate_size, hidden_size, bias)
        self._parts = (norm, self.gate, self.up, self.down)

    def tensor_names(self) -> list[str]:
        return [name for part in self._parts for name in part.tensor_names()]

    def load(self, source: TensorSource) -> None:
        for part in self._parts:
            part.load(source)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    def record(self, recording: Recording) -> None:
        inner = recording.scratch("mlp", self.intermediate_size)
        gate, up = self.gate.projection(inner), self.up.projection(inner)
        recording.plan.gated_linear(recording.hidden, gate, up, self.activation, self.norm.norm())
        recording.plan.linear(inner, [self.down.projection(recording.hidden, add=True)])
