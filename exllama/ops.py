"""The only door to native code: weight families, KV cache storage, and the plan that a forward pass is recorded on.

A `Plan` belongs to one device. Modules record operations on it once; `run` replays them for any number of rows up to
`max_rows`. On a CPU a run is one native call. Numerics obey DESIGN section 7: what a row computes depends on that row
and its own sequence alone.

Notation: R = rows of this run (tokens of all sequences, those of one sequence adjacent and in order), K = in_features,
N = out_features, H = query heads, G = key/value heads, D = head_dim.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
import torch

from exllama import reference, settings
from exllama.errors import BuildError, DeviceError, UnsupportedModelError, UsageError

PAGE_SIZE = 256  # tokens per KV page


class Weight(Protocol):
    """A matrix (N, K) of one of the three families, resident on a device in the layout that its kernels read."""

    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int: ...

    def dequantize(self) -> torch.Tensor:
        """The exact values, (N, K) float32, on the CPU."""
        ...


@dataclass(frozen=True)
class Buffer:
    """Activations of a plan, (max_rows, width) float32; only the first R rows of a run are valid."""

    width: int
    index: int


@dataclass(frozen=True)
class Projection:
    """out = x @ weight.T + bias, or out += ... when `add`; bias is (N,) float32 or None."""

    weight: Weight
    out: Buffer
    bias: torch.Tensor | None = None
    add: bool = False


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight; weight is (width,) float32."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True)
class Rope:
    """Half-split rotary embedding over the first 2 * len(inv_freq) features of a head.

    Angle of pair (i, i + rot/2) at position p is float32(p) * inv_freq[i]; cos and sin are multiplied by `scale` (yarn,
    longrope).
    """

    inv_freq: torch.Tensor  # (rot / 2,) float32
    scale: float = 1.0


class LayerCache(Protocol):
    """The K and V pages of one layer (see cache/storage.py)."""

    num_kv_heads: int
    head_dim: int

    @property
    def nbytes(self) -> int: ...

    def copy_page(self, source: int, target: int) -> None:
        """Copies keys and values of one page."""
        ...


Activation = Literal["silu", "gelu_tanh", "gelu"]


class Plan(Protocol):
    """What a device offers to record a forward pass on.

    faults: rows of the last run with a key or value that its cache cannot hold (NaN, infinity, beyond fp16), and which
    `rope_and_store`, counted from 0 in the order of recording, met it first. Logits of their sequences mean nothing;
    other sequences are as they would be without them.
    """

    max_rows: int
    faults: dict[int, int]

    def buffer(self, width: int) -> Buffer:
        """A new activation buffer."""
        ...

    def embed(self, table: Weight, out: Buffer, multiplier: float = 1.0) -> None:
        """out[r] = table[token_ids[r]] * multiplier."""
        ...

    def linear(
        self, x: Buffer, projections: Sequence[Projection], norm: Norm | None = None, precise: bool = False
    ) -> None:
        """Projections that share one input, optionally normalised first.

        precise: where a kernel rounds activations to 8 bits, it keeps 15; doubles the integer work of many rows.
        """
        ...

    def gated_linear(
        self, x: Buffer, gate: Projection, up: Projection, activation: Activation, norm: Norm | None = None
    ) -> None:
        """gate.out = activation(x @ gate.T) * (x @ up.T); up.out is ignored. gate and up have equal shapes."""
        ...

    def rope_and_store(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        cache: LayerCache,
        rope: Rope | None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        """q/k norm per head, rotary embedding in place on q (R, H*D) and k (R, G*D), k and v into the cache pages."""
        ...

    def attention(
        self,
        q: Buffer,
        out: Buffer,
        cache: LayerCache,
        scale: float,
        window: int | None = None,
        softcap: float = 0.0,
    ) -> None:
        """Causal paged attention of q (R, H*D) over the row's sequence. Position p sees [max(0, p - window + 1), p].

        softcap > 0: scores become softcap * tanh(score / softcap). Query head h reads kv head h * G // H.
        """
        ...

    def logits(self, x: Buffer, head: Weight, norm: Norm | None = None, softcap: float = 0.0) -> None:
        """Records the end of the pass: norm and head for the rows asked for (`logit_rows`)."""
        ...

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
    ) -> torch.Tensor:
        """Replays the pass.

        token_ids, positions, sequences: (R,) int32; sequences[r] is the row of page_table (S, P) int32 of r's sequence;
        page_table[s, i] is the page that holds positions 256 i .. 256 i + 255. logit_rows: (L,) int32 row indices.
        Returns (L, vocab) float32, valid until the next run.
        """
        ...


# --- The native module ---


@functools.cache
def native() -> ModuleType:
    """The extension module. Raises BuildError with the missing tool when it is absent and cannot be built."""
    import exllama_ext

    try:
        return exllama_ext.load()
    except ImportError as error:
        raise BuildError(str(error)) from error


def cpu_level() -> str:
    """The instruction-set level in use: EXLLAMA_CPU_ISA, else the best of this machine."""
    wanted = settings.cpu_isa()
    levels: list[str] = native().levels()
    if wanted is not None and wanted not in levels:
        raise DeviceError(f"EXLLAMA_CPU_ISA asks for {wanted!r}, but this processor runs {', '.join(levels)}")
    return wanted or levels[-1]


def default_threads() -> int:
    """EXLLAMA_THREADS, else the processors this process may use."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.threads() or affinity


@functools.cache
def _team(threads: int) -> Any:
    return native().Team(threads)


def machine_limits(threads: int | None = None) -> dict[str, float]:
    """What this machine can do at most, measured now with `threads` workers (about a second).

    read_gb_per_s: 10^9 bytes per second read from memory, best of five passes over 1 GiB. int8_gops: 10^9 operations
    per second of the int8 dot products of the level in use (a multiply and an add are two).
    """
    team = _team(threads or default_threads())
    read = native().read_bandwidth(team, cpu_level(), 1 << 30, 5)
    return {"read_gb_per_s": read / 1e9, "int8_gops": native().int8_peak(team, cpu_level()) / 1e9}


# --- Sampling ---


class SamplingParameters(Protocol):
    """Arrays with an element per row; row r's history is history[history_offsets[r] : history_offsets[r + 1]]."""

    temperature: np.ndarray[Any, np.dtype[np.float64]]
    top_k: np.ndarray[Any, np.dtype[np.int32]]
    top_p: np.ndarray[Any, np.dtype[np.float64]]
    min_p: np.ndarray[Any, np.dtype[np.float64]]
    repetition_penalty: np.ndarray[Any, np.dtype[np.float64]]
    seed: np.ndarray[Any, np.dtype[np.uint64]]
    position: np.ndarray[Any, np.dtype[np.int64]]
    history_offsets: np.ndarray[Any, np.dtype[np.int32]]

    @property
    def history(self) -> np.ndarray[Any, np.dtype[np.int32]]: ...


def sample(logits: torch.Tensor, rows: SamplingParameters) -> list[int]:
    """The next token of every row: logits (L, V) float32 on the CPU -> L ids; -1: the row holds NaN, +inf or only -inf.

    Probabilities are float32 (2 ulp), sums float64; the rules are those of generator/sampling/filters.py.
    """
    tokens: list[int] = native().sample_rows(
        cpu_level(),
        logits.numpy(),
        rows.temperature,
        rows.top_k,
        rows.top_p,
        rows.min_p,
        rows.repetition_penalty,
        rows.seed,
        rows.position,
        rows.history,
        rows.history_offsets,
    )
    return tokens


# --- Weights ---


class CpuWeight:
    """A matrix in the row blocks of kernels/cpu; family GroupAffine for block types, Dense for the others."""

    def __init__(self, type_name: str, packed: Any, shape: tuple[int, int]) -> None:
        self.type = type_name
        self.packed = packed
        self.out_features, self.in_features = shape

    @property
    def nbytes(self) -> int:
        return int(self.packed.nbytes)

    def dequantize(self) -> torch.Tensor:
        """The exact values, (N, K) float32."""
        return torch.from_numpy(native().dequantize(self.packed, cpu_level(), 0, self.out_features))


class Packer:
    """Takes a matrix row by row from a file; nothing but the packed result is kept."""

    def __init__(self, type_name: str, shape: tuple[int, int], native_type: str, held_as: str) -> None:
        self._shape, self._type = shape, type_name
        try:
            self._packed = native().PackedWeight(native_type, *shape, held_as)
        except ValueError as error:
            raise UnsupportedModelError(f"a {type_name} weight of shape {shape} cannot be packed: {error}") from error

    def add_rows(self, start_row: int, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """raw: (rows, row_bytes) uint8 as in the file; start_row: a multiple of 16."""
        try:
            self._packed.add_rows(start_row, np.ascontiguousarray(raw))
        except ValueError as error:
            raise UsageError(f"rows {start_row}.. of a {self._type} weight of shape {self._shape}: {error}") from error

    def finish(self) -> CpuWeight:
        return CpuWeight(self._type, self._packed, self._shape)


BLOCK_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
DENSE_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def pack_blocks(type_name: str, shape: tuple[int, int], device: str = "cpu") -> Packer:
    """GroupAffine from GGUF blocks, codes and scales kept to the bit. shape: (N, K), K a multiple of the block size."""
    _only_cpu(device)
    if type_name not in BLOCK_TYPES:
        raise UnsupportedModelError(f"no kernel reads {type_name} blocks; there are {', '.join(BLOCK_TYPES)}")
    return Packer(type_name, shape, type_name, "")


def pack_dense(dtype: str, shape: tuple[int, int], device: str = "cpu") -> Packer:
    """Dense from little-endian rows of float32, float16 or bfloat16.

    Where the processor multiplies bf16 directly (levels avx512_bf16 and amx), float16 weights are held as bfloat16,
    a rounding of at most 2^-8.
    """
    _only_cpu(device)
    if dtype not in DENSE_TYPES:
        raise UnsupportedModelError(f"dense weights are float32, float16 or bfloat16, not {dtype}")
    as_bf16 = dtype == "float16" and device == "cpu" and native().bf16_activations(cpu_level())
    return Packer(dtype, shape, DENSE_TYPES[dtype], "bf16" if as_bf16 else "")


def _only_cpu(device: str) -> None:
    if device not in ("cpu", "reference"):
        raise DeviceError(
            f"this build has no kernels for the device {device!r}; there is 'cpu' (and 'reference', slow and exact)"
        )


# --- KV cache ---


class CpuLayerCache:
    """Zeroed pages of one layer; see kernels/cpu/kv_cache.h for the bytes."""

    def __init__(self, num_pages: int, num_kv_heads: int, head_dim: int, k_bits: int, v_bits: int) -> None:
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        try:
            self.pages = native().CachePages(num_pages, num_kv_heads, head_dim, k_bits, v_bits)
        except ValueError as error:
            raise UsageError(
                f"a cache of {num_kv_heads} heads of {head_dim} with {k_bits}/{v_bits} bits: {error}"
            ) from error

    @property
    def nbytes(self) -> int:
        return int(self.pages.nbytes)

    def copy_page(self, source: int, target: int) -> None:
        self.pages.copy_page(source, target)


def layer_cache(
    device: str, num_pages: int, num_kv_heads: int, head_dim: int, k_bits: int = 16, v_bits: int = 16
) -> LayerCache:
    """Pages for one layer. k_bits, v_bits: 16 (fp16) or 2..8; head_dim a multiple of 16, of 32 where quantized."""
    _only_cpu(device)
    if device == "reference":
        return reference.LayerCache(num_pages, num_kv_heads, head_dim, k_bits, v_bits)
    return CpuLayerCache(num_pages, num_kv_heads, head_dim, k_bits, v_bits)


# --- Plans ---

# Activations are int8 per 32 columns. A row that this rounds worse than usual (Gaussian rows: 2.2e-5, squared and
# relative) is one of the few with huge outliers; it gets a second int8 row for the error. See docs/benchmarks.md.
RESIDUAL_ABOVE = 6e-5
_ACTIVATIONS = {"silu": 1, "gelu_tanh": 2, "gelu": 3}


class CpuPlan:
    """The Plan of a CPU: a list of native operations that one call runs on a team of threads."""

    def __init__(self, max_rows: int, threads: int | None = None, level: str | None = None) -> None:
        max_pages = 1 << 13  # of one sequence: 2 Mi tokens
        self.max_rows = max_rows
        self.threads = threads or default_threads()
        self._plan = native().Plan(_team(self.threads), level or cpu_level(), max_rows, max_pages)
        self.faults: dict[int, int] = {}
        self._rope_tables: dict[int, tuple[Rope, int]] = {}
        self._vocab = 0

    def buffer(self, width: int) -> Buffer:
        return Buffer(width, self._plan.buffer(width))

    def read(self, buffer: Buffer, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A copy of the first rows of a buffer; for tests."""
        values: np.ndarray[Any, np.dtype[np.float32]] = self._plan.read(buffer.index, rows)
        return values

    def write(self, buffer: Buffer, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """Fills the first rows of a buffer; for tests."""
        self._plan.write(buffer.index, values)

    def embed(self, table: Weight, out: Buffer, multiplier: float = 1.0) -> None:
        self._plan.embed(_packed(table), out.index, multiplier)

    def linear(
        self, x: Buffer, projections: Sequence[Projection], norm: Norm | None = None, precise: bool = False
    ) -> None:
        self._linear(x, projections, norm, 0, precise)

    def gated_linear(
        self, x: Buffer, gate: Projection, up: Projection, activation: Activation, norm: Norm | None = None
    ) -> None:
        self._linear(x, [gate, up], norm, _ACTIVATIONS[activation], False)

    def _linear(
        self, x: Buffer, projections: Sequence[Projection], norm: Norm | None, activation: int, precise: bool
    ) -> None:
        rows = [(_packed(p.weight), p.out.index, _array(p.bias), p.add) for p in projections]
        self._plan.linear(x.index, rows, *_norm(norm), activation, 0.0 if precise else RESIDUAL_ABOVE)

    def rope_and_store(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        cache: LayerCache,
        rope: Rope | None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        table = -1 if rope is None else self._rope_table(rope)
        self._plan.rope_and_store(q.index, k.index, v.index, _pages(cache), table, *_norm(q_norm), *_norm(k_norm))

    def _rope_table(self, rope: Rope) -> int:
        """Cosines and sines are computed once a run for all layers that share them."""
        if id(rope) not in self._rope_tables:
            inv_freq = rope.inv_freq.to(torch.float32).contiguous().numpy()
            self._rope_tables[id(rope)] = (rope, self._plan.rope_table(inv_freq, rope.scale))
        return self._rope_tables[id(rope)][1]

    def attention(
        self, q: Buffer, out: Buffer, cache: LayerCache, scale: float, window: int | None = None, softcap: float = 0.0
    ) -> None:
        self._plan.attention(q.index, out.index, _pages(cache), scale, window or 0, softcap)

    def logits(self, x: Buffer, head: Weight, norm: Norm | None = None, softcap: float = 0.0) -> None:
        self._vocab = head.out_features
        self._plan.logits(x.index, _packed(head), *_norm(norm), softcap, 0.0)

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
    ) -> torch.Tensor:
        out = np.empty((len(logit_rows), self._vocab), np.float32)
        try:
            faults = self._plan.run(token_ids, positions, sequences, page_table, logit_rows, out)
        except ValueError as error:
            raise UsageError(f"a batch of {len(token_ids)} rows cannot run: {error}") from error
        self.faults = dict(faults) if faults else {}
        return torch.from_numpy(out)


def _packed(weight: Weight) -> Any:
    if not isinstance(weight, CpuWeight):
        raise DeviceError(f"a plan of the CPU needs weights on the CPU, not {type(weight).__name__}")
    return weight.packed


def _pages(cache: LayerCache) -> Any:
    if not isinstance(cache, CpuLayerCache):
        raise DeviceError(f"a plan of the CPU needs a cache on the CPU, not {type(cache).__name__}")
    return cache.pages


def _array(vector: torch.Tensor | None) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    return None if vector is None else vector.to(torch.float32).contiguous().numpy()


def _norm(norm: Norm | None) -> tuple[np.ndarray[Any, np.dtype[np.float32]] | None, float]:
    return (None, 0.0) if norm is None else (_array(norm.weight), norm.eps)


def plan(device: str, max_rows: int, threads: int | None = None) -> Plan:
    """A plan on a device: "cpu" native, "reference" plain torch in float32. threads: None for the default."""
    _only_cpu(device)
    if device == "reference":
        return reference.ReferencePlan(max_rows, Buffer)
    return CpuPlan(max_rows, threads)
