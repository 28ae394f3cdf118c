"""Random EXL2, GPTQ and AWQ matrices as files have them, and plain decoders of them, which the readers never see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from exllama.loader.safetensors_checkpoint import SafetensorsCheckpoint

Tensors = dict[str, torch.Tensor]
Array = NDArray[Any]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(*shape: int) -> Array:
    """Numbers that the published test vectors are made of."""
    return ((np.arange(np.prod(shape), dtype=np.uint64) * 0x9E3779B1) % (1 << 32)).astype("<u4").reshape(shape)


def tensors(key: str, **parts: Array | None) -> Tensors:
    """The parts of a matrix as torch has them; None is left out."""
    found = {name: np.array(part, order="C") for name, part in parts.items() if part is not None}
    signed = {name: part.view("<i4") if part.dtype == np.uint32 else part for name, part in found.items()}
    return {f"{key}.{name}": torch.from_numpy(part) for name, part in signed.items()}


def write(folder: Path, parts: Tensors, config: str = "{}") -> SafetensorsCheckpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config)
    save_file(parts, folder / "model.safetensors")
    return SafetensorsCheckpoint(folder)


def stream(codes: Array, bits: int) -> Array:
    """(n, N) codes -> (n * bits / 32, N) words, a bit string down each column."""
    string = (codes[:, None, :].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)[None, :, None]) & 1
    packed = np.packbits(string.reshape(-1, codes.shape[1]), axis=0, bitorder="little")
    return np.ascontiguousarray(packed.T).view("<u4").T


def read_stream(packed: Array, bits: int, count: int) -> Array:
    """What stream() wrote, (count, N) int."""
    string = ((packed.view(np.uint32)[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1).reshape(
        -1, packed.shape[1]
    )[: count * bits]
    codes: Array = (string.reshape(count, bits, -1).astype(int) << np.arange(bits)[None, :, None]).sum(1)
    return codes


def random_exl2(
    key: str, rows: int, columns: int, groups: list[tuple[int, int]], seed: int = 0, order: Array | None = None
) -> Tensors:
    """groups: (bits, columns) of each, the widest first. Padded outputs hold weight zero, as the format wants it."""
    rng = np.random.default_rng([seed, rows, columns])
    padded = -(-rows // 32) * 32
    parts, pairs, row = [], [], 0
    for bits, size in groups:
        codes = rng.integers(0, 1 << bits, (size, padded))
        codes[:, rows:] = 1 << (bits - 1)
        parts.append(stream(codes, bits))
        pairs += [bits, row]
        row += len(parts[-1])
    largest = np.array([rng.uniform(1, 3) * columns**-0.5 * 2.0 ** (1 - bits) for bits, _ in groups])
    return tensors(
        key,
        q_weight=np.concatenate(parts),
        q_scale=rng.integers(0, 1 << 32, (len(groups), padded // 8), dtype=np.uint32),
        q_scale_max=largest.astype(np.float16),
        q_groups=np.array(pairs, np.int16),
        q_invperm=(rng.permutation(columns) if order is None else order).astype(np.int32),
    )


def decode_exl2(key: str, parts: Tensors) -> Array:
    """(N, K) float16; every operation in fp16."""
    q_weight, q_scale, largest, q_groups, inverse = (
        parts[f"{key}.{part}"].numpy() for part in ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")
    )
    pairs, count = q_groups.reshape(-1, 2).astype(int), len(q_scale)
    nibbles = (q_scale.view(np.uint32)[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    steps = nibbles.reshape(count, -1).astype(int) + 1
    matrix, row = np.empty((len(inverse), q_weight.shape[1]), np.float16), 0
    for i, (bits, start) in enumerate(pairs):
        stop = pairs[i + 1, 1] if i + 1 < count else len(q_weight)
        size = (stop - start) * 32 // bits
        scale = (steps[i] * steps[i]).astype(np.float16) * (largest[i] * np.float16(1 / 256))
        codes = read_stream(q_weight[start:stop], bits, size)
        matrix[row : row + size] = (codes - (1 << (bits - 1))).astype(np.float16) * scale
        row += size
    return matrix[inverse].T


def random_gptq(
    key: str,
    rows: int,
    columns: int,
    bits: int = 4,
    group: int = 32,
    *,
    symmetric: bool = False,
    version: int = 1,
    act_order: bool = False,
    seed: int = 0,
) -> Tensors:
    """group: -1 for one group. With act_order, groups are scattered over the rows."""
    rng = np.random.default_rng([seed, rows, columns, bits])
    size = columns if group == -1 else group
    index = np.arange(columns) // size
    count = int(index[-1]) + 1
    zeros = rng.integers(1, 1 << bits, (count, rows))
    zeros = np.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros
    scales = rng.uniform(0.5, 1.5, (count, rows)) * columns**-0.5 * 2.0 ** (2 - bits)
    return tensors(
        key,
        qweight=stream(rng.integers(0, 1 << bits, (columns, rows)), bits),
        qzeros=stream((zeros - (version == 1)).T, bits).T,
        scales=scales.astype(np.float16),
        g_idx=(rng.permutation(index) if act_order else index).astype(np.int32),
    )


def decode_gptq(key: str, parts: Tensors, bits: int, version: int = 1) -> Array:
    """(N, K) float32."""
    qweight, qzeros, scales, index = (
        parts[f"{key}.{part}"].numpy() for part in ("qweight", "qzeros", "scales", "g_idx")
    )
    codes = read_stream(qweight, bits, len(index))
    zeros = read_stream(np.ascontiguousarray(qzeros.T), bits, qweight.shape[1]).T + (version == 1)
    matrix: Array = ((codes - zeros[index]) * scales[index].astype(np.float32)).astype(np.float32).T
    return matrix


def awq_pack(codes: Array) -> Array:
    """(R, N) -> (R, N / 8) words."""
    shifted = codes.reshape(len(codes), -1, 8)[:, :, AWQ_ORDER].astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))
    packed: Array = shifted.sum(2, dtype=np.uint32)
    return packed


def awq_unpack(packed: Array) -> Array:
    """What awq_pack() wrote, (R, N) int."""
    nibbles = (packed.view(np.uint32)[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    codes = np.empty_like(nibbles)
    codes[:, :, AWQ_ORDER] = nibbles
    return codes.reshape(len(packed), -1).astype(int)


def random_awq(key: str, rows: int, columns: int, group: int = 32, seed: int = 0) -> Tensors:
    """rows: a multiple of 8."""
    rng = np.random.default_rng([seed, rows, columns])
    count = -(-columns // group)
    scales = rng.uniform(0.5, 1.5, (count, rows)) * columns**-0.5 * 0.25
    return tensors(
        key,
        qweight=awq_pack(rng.integers(0, 16, (columns, rows))),
        qzeros=awq_pack(rng.integers(0, 16, (count, rows))),
        scales=scales.astype(np.float16),
    )


def decode_awq(key: str, parts: Tensors, group: int = 32) -> Array:
    """(N, K) float32."""
    codes, zeros = (awq_unpack(parts[f"{key}.{part}"].numpy()) for part in ("qweight", "qzeros"))
    index = np.arange(len(codes)) // group
    scales = parts[f"{key}.scales"].numpy().astype(np.float32)
    matrix: Array = ((codes - zeros[index]) * scales[index]).astype(np.float32).T
    return matrix
