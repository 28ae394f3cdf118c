"""The only door to native code: each device's weights, KV cache storage and plans, chosen by the device's name.

protocol.py says what they offer; a device is one file beside it.
"""

from __future__ import annotations

from exllama import reference
from exllama.errors import DeviceError, UnsupportedModelError
from exllama.ops.cpu import RESIDUAL_ABOVE, CpuLayerCache, CpuPlan, CpuWeight, Packer
from exllama.ops.gpu import (
    BACKENDS,
    GpuLayerCache,
    GpuPacker,
    GpuPlan,
    GpuWeight,
    build_gpu_library,
    gpu_device,
    gpu_free_bytes,
    is_gpu,
)
from exllama.ops.native import cpu_level, default_threads, machine_limits, native, numerics
from exllama.ops.protocol import (
    PAGE_SIZE,
    Activation,
    Buffer,
    LayerCache,
    Norm,
    Plan,
    Projection,
    Rope,
    Weight,
    WeightPacker,
)
from exllama.ops.sampling import SAMPLE_SETTINGS, SamplingParameters, sample
from exllama.ops.trellis import pack_trellis

__all__ = [
    "BLOCK_TYPES",
    "DENSE_TYPES",
    "PAGE_SIZE",
    "RESIDUAL_ABOVE",
    "SAMPLE_SETTINGS",
    "Activation",
    "Buffer",
    "CpuLayerCache",
    "CpuPlan",
    "CpuWeight",
    "GpuWeight",
    "LayerCache",
    "Norm",
    "Packer",
    "Plan",
    "Projection",
    "Rope",
    "SamplingParameters",
    "Weight",
    "WeightPacker",
    "build_gpu_library",
    "cpu_level",
    "default_threads",
    "gpu_device",
    "gpu_free_bytes",
    "is_gpu",
    "layer_cache",
    "machine_limits",
    "native",
    "numerics",
    "pack_blocks",
    "pack_dense",
    "pack_trellis",
    "plan",
    "sample",
]

BLOCK_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
DENSE_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def pack_blocks(type_name: str, shape: tuple[int, int], device: str = "cpu") -> WeightPacker:
    """GroupAffine from GGUF blocks, codes and scales kept to the bit. shape: (N, K), K a multiple of the block size."""
    if type_name not in BLOCK_TYPES:
        raise UnsupportedModelError(f"no kernel reads {type_name} blocks; there are {', '.join(BLOCK_TYPES)}")
    if is_gpu(device):
        return GpuPacker(type_name, shape, False, device)
    _check_host(device)
    return Packer(type_name, shape, type_name, "")


def pack_dense(dtype: str, shape: tuple[int, int], device: str = "cpu") -> WeightPacker:
    """Dense from little-endian rows of float32, float16 or bfloat16.

    Where the processor multiplies bf16 directly (levels avx512_bf16 and amx), float16 weights are held as bfloat16,
    a rounding of at most 2^-8.
    """
    if dtype not in DENSE_TYPES:
        raise UnsupportedModelError(f"dense weights are float32, float16 or bfloat16, not {dtype}")
    if is_gpu(device):
        return GpuPacker(DENSE_TYPES[dtype], shape, True, device)
    _check_host(device)
    as_bf16 = dtype == "float16" and device == "cpu" and native().bf16_activations(cpu_level())
    return Packer(dtype, shape, DENSE_TYPES[dtype], "bf16" if as_bf16 else "")


def _check_host(device: str) -> None:
    if device not in ("cpu", "reference"):
        kinds = ", ".join(f"'{backend}:0'" for backend in BACKENDS)
        raise DeviceError(
            f"the device is {device!r}, expected 'cpu', {kinds} (or another number), or 'reference', slow and exact"
        )


def layer_cache(
    device: str, num_pages: int, num_kv_heads: int, head_dim: int, k_bits: int = 16, v_bits: int = 16
) -> LayerCache:
    """Pages for one layer. k_bits, v_bits: 16 (fp16) or 2..8; head_dim a multiple of 16."""
    if is_gpu(device):
        return GpuLayerCache(device, num_pages, num_kv_heads, head_dim, k_bits, v_bits)
    _check_host(device)
    if device == "reference":
        return reference.LayerCache(num_pages, num_kv_heads, head_dim, k_bits, v_bits)
    return CpuLayerCache(num_pages, num_kv_heads, head_dim, k_bits, v_bits)


def plan(device: str, max_rows: int, threads: int | None = None) -> Plan:
    """A plan on a device: "cpu" native, "cuda:0" and the like, "reference" plain torch in float32.

    threads: of the CPU, None for the default. Raises DeviceError for a device that is not there, BuildError when its
    kernels cannot be built.
    """
    if is_gpu(device):
        return GpuPlan(device, max_rows)
    _check_host(device)
    if device == "reference":
        return reference.ReferencePlan(max_rows, Buffer)
    return CpuPlan(max_rows, threads)
