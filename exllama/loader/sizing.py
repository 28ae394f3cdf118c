"""How many bytes a model will take on a device, part by part, before anything is loaded.

The modules are built and walked as loading and recording would walk them, with tensors and plans that only count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from exllama import architectures
from exllama.architectures.common.config import ConfigReader
from exllama.cache.storage import CacheLayer, cache_nbytes
from exllama.formats.registry import find_composite, find_format
from exllama.layers.attention import Attention
from exllama.layers.module import Module, Recording
from exllama.loader.checkpoint import Checkpoint
from exllama.loader.placement import KindSizes, ModelSizes
from exllama.ops import Activation, Buffer, LayerCache, Norm, Plan, Projection, Rope

_ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}
_UNIT = 256  # GPU allocations are multiples of it
_SPLIT_BLOCKS = 4 * 132  # attention is split until so many blocks run, on a GPU of 132 processors
_TABLE_PAGES = 16  # of one sequence, as input; more are negligible beside the cache that they stand for


def model_sizes(checkpoint: Checkpoint, cache: str = "fp16", rows: int = 2048, sequences: int = 16) -> ModelSizes:
    """Sizes of an open checkpoint. rows, sequences: of the largest step. Raises what reading the model raises."""
    reader = ConfigReader(checkpoint.path, checkpoint.config)
    architecture = architectures.find_architecture(reader)
    config = architecture.read_config(reader)
    if config.tied_head and _has_other_head(checkpoint):
        config = replace(config, tied_head=False)
    kinds = []
    for on_gpu in (False, True):
        modules = architecture.build(config, config.max_position)
        source = _CountingSource(checkpoint, on_gpu)
        for module in modules:
            module.load(source)
        kinds.append(_kind_sizes(modules, on_gpu, cache, rows, sequences))
    tied = not any(name.startswith("lm_head.") for name in modules[-1].tensor_names())
    return ModelSizes(kinds[0], kinds[1], tied, config.max_position)


def _has_other_head(checkpoint: Checkpoint) -> bool:
    """Whether a head is stored otherwise than the embedding that it is said to be. Equal forms count as one table."""
    tensors = checkpoint.tensors
    head, embedding = (tensors.get(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
    if head is None or embedding is None:
        return find_composite(tensors, "lm_head") is not None
    return (head.shape, head.type) != (embedding.shape, embedding.type)


def _kind_sizes(modules: Sequence[Module], on_gpu: bool, cache: str, rows: int, sequences: int) -> KindSizes:
    embedding, *inner, head = modules
    begins = [index for index, module in enumerate(inner) if isinstance(module, Attention)]
    blocks = [inner[begin:end] for begin, end in zip(begins, [*begins[1:], len(inner)], strict=True)]
    shapes = [module.shape for module in inner if isinstance(module, Attention)]
    width = shapes[0].hidden_size
    body = _CountingPlan(on_gpu, rows, sequences)
    recording = Recording(body, width, [_NoCache(shape.num_kv_heads, shape.head_dim) for shape in shapes])
    for module in modules[:-1]:
        module.record(recording)
    workspace = body.nbytes
    head.record(recording)
    return KindSizes(
        embedding=embedding.nbytes,
        blocks=tuple(sum(module.nbytes for module in block) for block in blocks),
        pages=tuple(cache_nbytes([CacheLayer(shape.num_kv_heads, shape.head_dim)], 1, cache) for shape in shapes),
        head=head.nbytes,
        workspace=workspace,
        head_workspace=body.nbytes - workspace,
        partials=body.partials,
        split_page=body.split_page,
    )


class _Sized:
    """A weight that is nothing but its size."""

    def __init__(self, shape: tuple[int, int], nbytes: int, is_composite: bool) -> None:
        self.out_features, self.in_features = shape
        self.nbytes, self.is_composite = nbytes, is_composite

    def dequantize(self) -> torch.Tensor:
        raise AssertionError("a plan never looks at values")


class _CountingSource:
    """The TensorSource of layers/module.py that reads no tensor."""

    def __init__(self, checkpoint: Checkpoint, on_gpu: bool) -> None:
        self._checkpoint, self._on_gpu = checkpoint, on_gpu

    def weight(self, key: str, shape: tuple[int, int]) -> Any:
        size = weight_bytes(self._checkpoint, key, shape, self._on_gpu)
        is_composite = find_composite(self._checkpoint.tensors, key) is not None
        return _Sized(shape, _rounded(size) if self._on_gpu else size, is_composite)

    def vector(self, name: str, size: int) -> torch.Tensor:
        return torch.empty(_rounded(4 * size) // 4 if self._on_gpu else size, device="meta")


def weight_bytes(checkpoint: Checkpoint, key: str, shape: tuple[int, int], on_gpu: bool) -> int:
    """Bytes of a matrix once packed: rows in tiles of 16, columns padded as kernels read them."""
    tensors, (rows, columns) = checkpoint.tensors, shape
    composite = find_composite(tensors, key)
    if composite is not None and composite.expanded:
        return 4 * shape[0] * shape[1]
    if composite is not None:
        return sum(tensors[name].nbytes for name in composite.names(key) if name in tensors)
    tile_rows = -(-rows // 16) * 16
    stored = tensors.get(f"{key}.weight")
    if stored is None:
        return 0  # loading will say that it is missing
    form = find_format(stored.type)
    if form.family == "GroupAffine" and not form.expanded:
        padded = -(-columns // 64) * 64 if on_gpu else columns
        return math.ceil(stored.nbytes / rows * tile_rows * padded / columns)
    step = 8 if on_gpu else 32
    return tile_rows * -(-columns // step) * step * _ITEM.get(form.held, 4)


class _NoCache:
    """A cache layer that is nothing but its shape."""

    def __init__(self, num_kv_heads: int, head_dim: int) -> None:
        self.num_kv_heads, self.head_dim, self.nbytes = num_kv_heads, head_dim, 0

    def copy_page(self, source: int, target: int) -> None:
        raise AssertionError("a plan has no pages")

    def read_page(self, page: int) -> Any:
        raise AssertionError("a plan has no pages")

    def write_page(self, page: int, data: Any) -> None:
        raise AssertionError("a plan has no pages")


class _CountingPlan(Plan):
    """The Plan that adds up buffers: float32 on CPUs, on GPUs float32 for the residual stream and float16 elsewhere."""

    def __init__(self, on_gpu: bool, rows: int, sequences: int) -> None:
        self.max_rows, self.faults = -(-rows // 64) * 64 if on_gpu and rows > 64 else rows, {}
        self._on_gpu, self._sequences = on_gpu, sequences
        self._buffers: list[int] = []
        self._typed: dict[int, int] = {}
        self._normed = self._rotated = self._turned = self._shared = self._logits = 0
        self.partials = self.split_page = 0
        self._ropes: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers so far, and of what the steps share, partial sums apart."""
        if not self._on_gpu:
            return sum(self._typed.values()) + self._shared + self._logits
        inputs = self.max_rows * (5 + _TABLE_PAGES) * 4
        shared = self.max_rows * 2 * (self._normed + self._rotated + self._turned)
        return sum(map(_rounded, self._typed.values())) + shared + inputs + self._logits

    def buffer(self, width: int) -> Buffer:
        self._buffers.append(width)
        if not self._on_gpu:
            self._typed[len(self._buffers) - 1] = (self.max_rows * width + 64) * 4
        return Buffer(width, len(self._buffers) - 1)

    def _write(self, buffer: Buffer, item: int) -> None:
        if self._on_gpu:
            self._typed.setdefault(buffer.index, self.max_rows * _stride(buffer.width) * item)

    def _read(self, x: Buffer, norm: Norm | None, widths: Sequence[int] = ()) -> None:
        """A GPU keeps the normed input, a CPU its 8-bit codes with a scale for 32 of them, twice for outliers."""
        if self._on_gpu:
            self.partials = max(self.partials, _partial_bytes(self.max_rows, x.width, tuple(widths)))
        self._normed = max(self._normed, _stride(x.width) if norm else 0)
        self._shared = max(self._shared, self.max_rows * x.width * 5 // 2)

    def _turn(self, x: Buffer, projections: Sequence[Projection]) -> None:
        """Trellises read their inputs rotated, each by signs of its own."""
        count = sum(getattr(projection.weight, "is_composite", False) for projection in projections)
        self._turned = max(self._turned, count * -(-x.width // 128) * 128)

    def embed(self, table: Any, out: Buffer, multiplier: float = 1.0) -> None:
        self._write(out, 4)

    def linear(
        self, x: Buffer, projections: Sequence[Projection], norm: Norm | None = None, precise: bool = False
    ) -> None:
        self._read(x, norm, [projection.out.width for projection in projections])
        self._turn(x, projections)
        for projection in projections:
            self._write(projection.out, 4 if projection.add else 2)

    def gated_linear(
        self, x: Buffer, gate: Projection, up: Projection, activation: Activation, norm: Norm | None = None
    ) -> None:
        self._read(x, norm, [2 * gate.out.width])
        self._turn(x, [gate, up])
        self._write(gate.out, 2)

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
        self._rotated = max(self._rotated, q.width)
        if rope is not None and id(rope) not in self._ropes:
            self._ropes.add(id(rope))
            self._write(self.buffer(2 * len(rope.inv_freq)), 4)

    def attention(
        self, q: Buffer, out: Buffer, cache: LayerCache, scale: float, window: int | None = None, softcap: float = 0.0
    ) -> None:
        self._write(out, 2)
        if self._on_gpu:
            few = min(self.max_rows, _SPLIT_BLOCKS // cache.num_kv_heads)  # with more rows nothing is split
            record = 4 * (cache.head_dim + 4)
            self.split_page = max(self.split_page, few * q.width // cache.head_dim * record)

    def logits(self, x: Buffer, head: Any, norm: Norm | None = None, softcap: float = 0.0) -> None:
        self._read(x, norm)
        if self._on_gpu:
            self.partials = max(self.partials, _partial_bytes(self._sequences, x.width, (head.out_features,)))
        self._logits = self._sequences * head.out_features * 4

    def run(self, *inputs: Any) -> torch.Tensor:
        raise AssertionError("a plan that counts cannot run")


@functools.cache
def _partial_bytes(rows: int, columns: int, widths: tuple[int, ...]) -> int:
    """What kernels/gemm/linear.cu keeps of partial sums, for steps of up to `rows` rows: see its `plan`."""
    if not widths:
        return 0
    steps, blocks, slices = -(-columns // 64), sum(-(-width // 128) for width in widths), 1
    for width in widths:
        slice_steps = -(-steps // 4) * 4
        while slice_steps > 8 and -(-width // 128) * -(-steps // slice_steps) < 512:
            slice_steps = max(8, -(-(slice_steps // 2) // 4) * 4)
        slices = max(slices, -(-steps // slice_steps))
    most = 0
    for count in (*(1 << power for power in range(7) if 1 << power <= rows), *range(128, rows + 1, 64)):
        tiles = next((size for size in (1, 2, 4, 8) if count <= 8 * size), 8)
        whole = blocks * -(-count // (8 * tiles))
        slots = (slices if whole < (512 if tiles <= 2 else 128) else 1) if slices > 1 else 0
        most = max(most, whole * slots * 128 * 8 * tiles * 4)
    return most


def _stride(width: int) -> int:
    return -(-width // 64) * 64


def _rounded(size: int) -> int:
    return -(-size // _UNIT) * _UNIT
