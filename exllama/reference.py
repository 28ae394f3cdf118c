"""Every operation of `ops.Plan` in plain torch: slow, obviously right, the oracle of the native kernels.

The functions work in the dtype of their inputs, so a test may call them in float64. `ReferencePlan` runs whole models
with them in float32 and serves as the device "reference".

Notation as in ops/protocol.py: R rows, K in_features, N out_features, H query heads, G kv heads, D head_dim; and T
cached tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from exllama.errors import UsageError

PAGE_SIZE = 256  # tokens per KV page
GROUP = 32  # features that share one scale in a quantized cache


# ---- single operations -----------------------------------------------------------------------------------------------


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., K) @ weight (N, K).T + bias (N,)."""
    out = x @ weight.T
    return out if bias is None else out + bias


def embedding(table: torch.Tensor, token_ids: torch.Tensor, multiplier: float = 1.0) -> torch.Tensor:
    """Rows of table (vocab, K), scaled."""
    return table[token_ids] * multiplier


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """silu, gelu (exact, by the error function) or gelu_tanh."""
    if activation == "silu":
        return torch.nn.functional.silu(x)
    if activation == "gelu":
        return torch.nn.functional.gelu(x)
    if activation == "gelu_tanh":
        return torch.nn.functional.gelu(x, approximate="tanh")
    raise UsageError(f"activation is {activation!r}, expected silu, gelu or gelu_tanh")


def rope(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Half-split rotary embedding of x (R, heads, D) over its first 2 * len(inv_freq) features.

    The angle is the float32 product of position and inv_freq, as models are trained with it, whatever x.dtype is.
    """
    half = len(inv_freq)
    angle = (positions.float()[:, None] * inv_freq.float()).to(x.dtype)[:, None, :]  # (R, 1, half)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(x / cap), or x when cap is 0."""
    return cap * torch.tanh(x / cap) if cap > 0 else x


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int | None = None,
    cap: float = 0.0,
) -> torch.Tensor:
    """Causal attention of q (R, H, D), row r at positions[r], over k, v (T, G, D) at positions 0 .. T-1 -> (R, H, D).

    Query head h reads kv head h * G // H. Position p sees max(0, p - window + 1) .. p.
    """
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = softcap(torch.einsum("rhd,thd->hrt", q, k) * scale, cap)
    seen = torch.arange(len(k))[None, :] <= positions[:, None]
    if window is not None:
        seen &= torch.arange(len(k))[None, :] > positions[:, None] - window
    return torch.einsum("hrt,thd->rhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v)


def _split(x: torch.Tensor, size: int) -> torch.Tensor:
    return x.reshape(*x.shape[:-1], -1, size)


# ---- quantized cache -------------------------------------------------------------------------------------------------


def hadamard(n: int = GROUP) -> torch.Tensor:
    """The symmetric orthonormal Walsh-Hadamard matrix (n, n) in Sylvester order, n a power of two; float64."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
    return h / math.sqrt(n)


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Hadamard-32 on each 32 consecutive features of x (..., D); its own inverse."""
    return (_split(x, GROUP) @ hadamard().to(x.dtype)).flatten(-2)


def half_at_least(x: torch.Tensor) -> torch.Tensor:
    """The smallest float16 that is not below x >= 0; 65504 where there is none."""
    near = x.clamp(max=65504.0).to(torch.float16)
    above = (near.view(torch.int16) + 1).view(torch.float16)
    return torch.where(near.to(x.dtype) < x, above, near).clamp(max=65504.0)


def quantize(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (..., D) -> codes (..., D) uint8 of `bits` bits and scales (..., D/32) float16.

    Rotation, then the midpoint grid q = clamp(floor(w / s * m + m), 0, 2m - 1), m = 2^(bits-1), with s the largest
    magnitude of 32 features as float16, rounded up. What does not `fit` becomes the nearest that there is.
    """
    groups = _split(rotate(x), GROUP)
    scales = half_at_least(groups.abs().nan_to_num(math.inf, math.inf).amax(-1))
    m = 2.0 ** (bits - 1)
    inverse = 1.0 / scales.to(x.dtype).clamp(min=1e-10)
    codes = torch.floor(groups * inverse[..., None] * m + m).clamp(0, 2 * m - 1)
    return codes.nan_to_num(0.0).flatten(-2).to(torch.uint8), scales


def fits(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Which rows of x (R, G, D) a cache of `bits` bits can hold, (R,) bool: no NaN or infinity, before and after.

    fp16 must not round them to infinity; in packed groups the scale, their absmax after rotation, must be within 65504.
    """
    if bits == 32:
        return torch.isfinite(x).flatten(1).all(1)
    if bits == 16:
        return torch.isfinite(x.to(torch.float16)).flatten(1).all(1)
    return (rotate(x).abs() <= 65504.0).flatten(1).all(1)


def dequantize(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (..., D) and scales (..., D/32) -> (..., D) float32, rotated back: value (q - m + 1/2) / m * s."""
    m = 2.0 ** (bits - 1)
    values = (codes.float() - m + 0.5) / m
    return rotate((_split(values, GROUP) * scales.float()[..., None]).flatten(-2))


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (..., D) uint8 -> (..., D * bits / 8) uint8: `bits` words of 32 bits per group, lowest bit first."""
    planes = (codes.numpy()[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(planes.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little"))


def unpack_codes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of pack_codes."""
    planes = np.unpackbits(packed.numpy(), axis=-1, bitorder="little").reshape(*packed.shape[:-1], -1, bits)
    return torch.from_numpy((planes << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8))


# ---- weights and cache storage ---------------------------------------------------------------------------------------


class FloatWeight:
    """A matrix held as float32: the simplest weight there is."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix.to(torch.float32).contiguous()
        self.out_features, self.in_features = self.matrix.shape

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def dequantize(self) -> torch.Tensor:
        """(N, K) float32."""
        return self.matrix


def padded_dim(head_dim: int, k_bits: int, v_bits: int) -> int:
    """Features of a head as a cache stores them: where K or V is packed, the last group of 32 is filled with zeros."""
    return head_dim if min(k_bits, v_bits) > 8 else -(-head_dim // GROUP) * GROUP


class Pages:
    """K or V of one layer, (pages, 256, G, D): float32 (32), float16 (16), or packed codes and scales (2 to 8 bits).

    width: features of a head as stored, D and zeros behind; a multiple of 32 where packed.
    """

    def __init__(self, num_pages: int, num_kv_heads: int, head_dim: int, bits: int, width: int | None = None) -> None:
        if bits not in (*range(2, 9), 16, 32):
            raise UsageError(f"a cache of {bits} bits was asked for, expected 2 to 8 or 16")
        shape = (num_pages, PAGE_SIZE, num_kv_heads)
        width = padded_dim(head_dim, bits, bits) if width is None else width
        self.bits, self.head_dim, self._padding = bits, head_dim, width - head_dim
        if bits > 8:
            dtype = torch.float16 if bits == 16 else torch.float32
            self.parts = [torch.zeros(*shape, width, dtype=dtype)]
        else:
            codes = torch.zeros(*shape, width * bits // 8, dtype=torch.uint8)
            self.parts = [codes, torch.zeros(*shape, width // GROUP, dtype=torch.float16)]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def write(self, pages: torch.Tensor, slots: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Stores x (R, G, D) float32 at (pages[r], slots[r]) and says which rows fit, (R,) bool."""
        x = torch.nn.functional.pad(x, (0, self._padding))
        if self.bits > 8:
            self.parts[0][pages, slots] = x.to(self.parts[0].dtype)
        else:
            codes, scales = quantize(x, self.bits)
            self.parts[0][pages, slots] = pack_codes(codes, self.bits)
            self.parts[1][pages, slots] = scales
        return fits(x, self.bits)

    def read(self, pages: torch.Tensor) -> torch.Tensor:
        """(len(pages) * 256, G, D) float32: what the stored bytes mean."""
        parts = [part[pages].flatten(0, 1) for part in self.parts]
        if self.bits > 8:
            return parts[0][..., : self.head_dim].float()
        return dequantize(unpack_codes(parts[0], self.bits), parts[1], self.bits)[..., : self.head_dim]

    def copy_page(self, src: int, dst: int) -> None:
        for part in self.parts:
            part[dst] = part[src]


def write_parts(parts: Sequence[np.ndarray], data: np.ndarray) -> None:
    """Fills flat uint8 views one after the other; together they are as long as `data`."""
    begin = 0
    for part in parts:
        part[:] = data[begin : begin + part.nbytes]
        begin += part.nbytes


class LayerCache:
    """The K and V pages of one layer. Bits 32 exist here alone: a cache without rounding, to compare models with."""

    def __init__(self, num_pages: int, num_kv_heads: int, head_dim: int, k_bits: int, v_bits: int) -> None:
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        width = padded_dim(head_dim, k_bits, v_bits)
        self.k = Pages(num_pages, num_kv_heads, head_dim, k_bits, width)
        self.v = Pages(num_pages, num_kv_heads, head_dim, v_bits, width)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def copy_page(self, src: int, dst: int) -> None:
        """Makes page dst equal to page src."""
        self.k.copy_page(src, dst)
        self.v.copy_page(src, dst)

    def read_page(self, page: int) -> np.ndarray:
        """A copy of the bytes of a page, flat."""
        return np.concatenate(self._parts(page))

    def write_page(self, page: int, data: np.ndarray) -> None:
        """Gives a page bytes that read_page returned."""
        write_parts(self._parts(page), data)

    def _parts(self, page: int) -> list[np.ndarray]:
        return [part[page].view(torch.uint8).flatten().numpy() for store in (self.k, self.v) for part in store.parts]


# ---- the plan --------------------------------------------------------------------------------------------------------


class WeightLike(Protocol):
    """What is used of ops.Weight."""

    out_features: int

    def dequantize(self) -> torch.Tensor: ...


class BufferLike(Protocol):
    """What is used of ops.Buffer."""

    @property
    def width(self) -> int: ...
    @property
    def index(self) -> int: ...


class ProjectionLike(Protocol):
    """What is used of ops.Projection."""

    @property
    def weight(self) -> WeightLike: ...
    @property
    def out(self) -> BufferLike: ...
    @property
    def bias(self) -> torch.Tensor | None: ...
    @property
    def add(self) -> bool: ...


class NormLike(Protocol):
    """What is used of ops.Norm."""

    @property
    def weight(self) -> torch.Tensor: ...
    @property
    def eps(self) -> float: ...


class RopeLike(Protocol):
    """What is used of ops.Rope."""

    @property
    def inv_freq(self) -> torch.Tensor: ...
    @property
    def scale(self) -> float: ...


@dataclass
class _Rows:
    """The arguments of one run."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    sequences: torch.Tensor
    page_table: torch.Tensor
    logit_rows: torch.Tensor
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def pages(self) -> torch.Tensor:
        return self.page_table[self.sequences, self.positions // PAGE_SIZE]


Step = Callable[[_Rows], None]
B = TypeVar("B", bound=BufferLike)


class ReferencePlan(Generic[B]):
    """`ops.Plan` over the functions above, in float32. make_buffer is the class of its buffers, `ops.Buffer`.

    Each weight is dequantized once, when it is recorded.
    """

    def __init__(self, max_rows: int, make_buffer: Callable[[int, int], B]) -> None:
        self.max_rows = max_rows
        self._make_buffer = make_buffer
        self._buffers: list[torch.Tensor] = []
        self._matrices: dict[int, tuple[WeightLike, torch.Tensor]] = {}
        self._steps: list[Step] = []
        self._num_layers = 0
        self.faults: dict[int, int] = {}

    def buffer(self, width: int) -> B:
        self._buffers.append(torch.zeros(self.max_rows, width))
        return self._make_buffer(width, len(self._buffers) - 1)

    def embed(self, table: WeightLike, out: BufferLike, multiplier: float = 1.0) -> None:
        matrix = self._matrix(table)
        self._steps.append(lambda rows: self._write(out, embedding(matrix, rows.token_ids, multiplier)))

    def linear(
        self, x: BufferLike, projections: Sequence[ProjectionLike], norm: NormLike | None = None, precise: bool = False
    ) -> None:
        matrices = [self._matrix(p.weight) for p in projections]

        def step(rows: _Rows) -> None:
            value = self._read(x, norm, rows)
            for p, matrix in zip(projections, matrices, strict=True):
                self._project(p, linear(value, matrix, p.bias))

        self._steps.append(step)

    def gated_linear(
        self, x: BufferLike, gate: ProjectionLike, up: ProjectionLike, activation: str, norm: NormLike | None = None
    ) -> None:
        gate_matrix, up_matrix = self._matrix(gate.weight), self._matrix(up.weight)

        def step(rows: _Rows) -> None:
            value = self._read(x, norm, rows)
            gated = activate(linear(value, gate_matrix, gate.bias), activation)
            self._project(gate, gated * linear(value, up_matrix, up.bias))

        self._steps.append(step)

    def rope_and_store(
        self,
        q: BufferLike,
        k: BufferLike,
        v: BufferLike,
        cache: object,
        rope: RopeLike | None,
        q_norm: NormLike | None = None,
        k_norm: NormLike | None = None,
    ) -> None:
        store, layer = _own(cache), self._num_layers
        self._num_layers += 1

        def step(rows: _Rows) -> None:
            self._write(q, _prepare(self._heads(q, store, rows), rows.positions, rope, q_norm).flatten(1))
            self._write(k, _prepare(self._heads(k, store, rows), rows.positions, rope, k_norm).flatten(1))
            pages, slots = rows.pages(), rows.positions % PAGE_SIZE
            held = store.k.write(pages, slots, self._heads(k, store, rows))
            held &= store.v.write(pages, slots, self._heads(v, store, rows))
            for row in (~held).nonzero()[:, 0].tolist():
                self.faults.setdefault(row, layer)

        self._steps.append(step)

    def attention(
        self,
        q: BufferLike,
        out: BufferLike,
        cache: object,
        scale: float,
        window: int | None = None,
        softcap: float = 0.0,
    ) -> None:
        store = _own(cache)

        def step(rows: _Rows) -> None:
            heads = self._heads(q, store, rows)
            result = torch.empty_like(heads)
            for sequence in sorted(set(rows.sequences.tolist())):
                mine = (rows.sequences == sequence).nonzero()[:, 0]
                used = int(rows.positions[mine].max()) + 1
                pages = rows.page_table[sequence, : -(-used // PAGE_SIZE)]
                k, v = store.k.read(pages)[:used], store.v.read(pages)[:used]
                result[mine] = attention(heads[mine], k, v, rows.positions[mine], scale, window, softcap)
            self._write(out, result.flatten(1))

        self._steps.append(step)

    def logits(self, x: BufferLike, head: WeightLike, norm: NormLike | None = None, softcap: float = 0.0) -> None:
        matrix, cap = self._matrix(head), softcap

        def step(rows: _Rows) -> None:
            value = self._read(x, norm, rows)[rows.logit_rows]
            rows.logits = _softcap(linear(value, matrix), cap)

        self._steps.append(step)

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
    ) -> torch.Tensor:
        if len(token_ids) > self.max_rows:
            raise UsageError(f"a batch of {len(token_ids)} rows was given to a plan of {self.max_rows}")
        arrays = (token_ids, positions, sequences, page_table, logit_rows)
        rows = _Rows(*(torch.from_numpy(np.ascontiguousarray(a)).long() for a in arrays))
        self.faults = {}
        for step in self._steps:
            step(rows)
        return rows.logits

    def _matrix(self, weight: WeightLike) -> torch.Tensor:
        return self._matrices.setdefault(id(weight), (weight, weight.dequantize().float()))[1]

    def _read(self, x: BufferLike, norm: NormLike | None, rows: _Rows) -> torch.Tensor:
        value = self._buffers[x.index][: len(rows.token_ids)]
        return value if norm is None else rms_norm(value, norm.weight, norm.eps)

    def _heads(self, x: BufferLike, cache: LayerCache, rows: _Rows) -> torch.Tensor:
        return _split(self._read(x, None, rows), cache.head_dim)  # (R, heads, D)

    def _write(self, out: BufferLike, value: torch.Tensor) -> None:
        self._buffers[out.index][: len(value)] = value

    def _project(self, p: ProjectionLike, value: torch.Tensor) -> None:
        before = self._buffers[p.out.index][: len(value)]
        self._write(p.out, before + value if p.add else value)


_softcap = softcap  # the plan's methods take an argument of that name


def _prepare(x: torch.Tensor, positions: torch.Tensor, rotary: RopeLike | None, norm: NormLike | None) -> torch.Tensor:
    x = x if norm is None else rms_norm(x, norm.weight, norm.eps)
    return x if rotary is None else rope(x, positions, rotary.inv_freq, rotary.scale)


def _own(cache: object) -> LayerCache:
    if not isinstance(cache, LayerCache):
        raise UsageError(f"the reference plan was given a {type(cache).__name__}, expected a reference.LayerCache")
    return cache
