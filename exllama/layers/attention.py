"""The attention half of a transformer block."""

from __future__ import annotations

from dataclasses import dataclass

from exllama.layers.linear import Linear
from exllama.layers.module import Module, Recording, TensorSource
from exllama.layers.norm import RMSNorm
from exllama.ops import Rope


@dataclass(frozen=True)
class AttentionShape:
    """What distinguishes one attention layer from another.

    window: how many positions a token sees, itself included; None for all. scale: of the scores, before softcap.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float = 0.0
    qkv_bias: bool = False
    o_bias: bool = False


class Attention(Module):
    """hidden += o(attention(q, k, v)) with q, k, v = projections of norm(hidden); grouped query heads share kv heads.

    rope: None for a layer without positions. qk_norm_eps: eps of an RMSNorm per head on q and k, None for none.
    """

    def __init__(
        self, key: str, norm: RMSNorm, shape: AttentionShape, rope: Rope | None, qk_norm_eps: float | None = None
    ) -> None:
        self.key, self.norm, self.shape, self.rope = key, norm, shape, rope
        self.q_width, self.kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q = Linear(f"{key}.q_proj", shape.hidden_size, self.q_width, shape.qkv_bias)
        self.k = Linear(f"{key}.k_proj", shape.hidden_size, self.kv_width, shape.qkv_bias)
        self.v = Linear(f"{key}.v_proj", shape.hidden_size, self.kv_width, shape.qkv_bias)
        self.o = Linear(f"{key}.o_proj", self.q_width, shape.hidden_size, shape.o_bias)
        self.q_norm = None if qk_norm_eps is None else RMSNorm(f"{key}.q_norm", shape.head_dim, qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else RMSNorm(f"{key}.k_norm", shape.head_dim, qk_norm_eps)
        parts = (norm, self.q, self.k, self.v, self.q_norm, self.k_norm, self.o)
        self._parts = [part for part in parts if part is not None]

    def tensor_names(self) -> list[str]:
        return [name for part in self._parts for name in part.tensor_names()]

    def load(self, source: TensorSource) -> None:
        for part in self._parts:
            part.load(source)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    def record(self, recording: Recording) -> None:
        plan, cache, shape = recording.plan, recording.next_cache(), self.shape
        q, out = recording.scratch("q", self.q_width), recording.scratch("attention", self.q_width)
        k, v = recording.scratch("k", self.kv_width), recording.scratch("v", self.kv_width)
        projections = [self.q.projection(q), self.k.projection(k), self.v.projection(v)]
        # Rounding the input of q, k and v to 8 bits costs more divergence than any other input (docs/benchmarks.md).
        plan.linear(recording.hidden, projections, self.norm.norm(), precise=True)
        q_norm, k_norm = (norm.norm() if norm else None for norm in (self.q_norm, self.k_norm))
        plan.rope_and_store(q, k, v, cache, self.rope, q_norm, k_norm)
        plan.attention(q, out, cache, shape.scale, shape.window, shape.softcap)
        plan.linear(out, [self.o.projection(recording.hidden, add=True)])
