"""The argument structs of the GPU kernels, as ctypes sees them."""

from __future__ import annotations

import ctypes
from typing import Any

from tests.kernels.library import DeviceArray, Library

pointer, int32, int64, float32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Struct(ctypes.Structure):
    """Made of keyword arguments; device arrays become pointers, what is not named is zero."""

    def __init__(self, **values: Any) -> None:
        unknown = values.keys() - {field[0] for field in self._fields_}
        assert not unknown, f"{type(self).__name__} has no {unknown}"
        super().__init__(**{k: v.pointer if isinstance(v, DeviceArray) else v for k, v in values.items()})


class Cache(Struct):
    """exl_kv_cache."""

    _fields_ = (
        ("keys", pointer), ("values", pointer), ("num_kv_heads", int32), ("head_dim", int32), ("key_bits", int32),
        ("value_bits", int32),
    )  # fmt: skip


class Geometry(Struct):
    """exl_kv_geometry."""

    _fields_ = (("padded_dim", int32), ("key_page_bytes", int64), ("value_page_bytes", int64))


class Rows(Struct):
    """exl_rows."""

    _fields_ = (
        ("count", int32), ("pages_per_sequence", int32), ("positions", pointer), ("sequences", pointer),
        ("page_table", pointer),
    )  # fmt: skip


class CopyPages(Struct):
    """exl_copy_pages_args."""

    _fields_ = (("pages", pointer), ("page_bytes", int64), ("pairs", pointer), ("num_pairs", int32))


class RopeTable(Struct):
    """exl_rope_table_args."""

    _fields_ = (
        ("positions", pointer), ("inv_freq", pointer), ("table", pointer), ("rows", int32), ("rotary_dim", int32),
        ("scale", float32),
    )  # fmt: skip


class RopeAndStore(Struct):
    """exl_rope_and_store_args."""

    _fields_ = (
        ("q", pointer), ("k", pointer), ("v", pointer), ("q_out", pointer), ("q_stride", int64), ("k_stride", int64),
        ("v_stride", int64), ("q_out_stride", int64), ("num_heads", int32), ("q_norm", pointer), ("k_norm", pointer),
        ("q_eps", float32), ("k_eps", float32), ("table", pointer), ("rotary_dim", int32), ("cache", Cache),
        ("rows", Rows), ("faults", pointer), ("layer", int32),
    )  # fmt: skip


class Attention(Struct):
    """exl_attention_args."""

    _fields_ = (
        ("q", pointer), ("out", pointer), ("q_stride", int64), ("out_stride", int64), ("num_heads", int32),
        ("scale", float32), ("window", int32), ("softcap", float32), ("sinks", pointer), ("cache", Cache),
        ("rows", Rows), ("splits", int32), ("workspace", pointer), ("tickets", pointer),
    )  # fmt: skip


class AttentionWorkspace(Struct):
    """exl_attention_workspace."""

    _fields_ = (("workspace_bytes", int64), ("ticket_bytes", int64))


class Norm(Struct):
    """exl_norm_args."""

    _fields_ = (
        ("x", pointer), ("delta", pointer), ("row_index", pointer), ("weight", pointer), ("out", pointer),
        ("x_stride", int64), ("delta_stride", int64), ("out_stride", int64), ("rows", int32), ("width", int32),
        ("eps", float32), ("num_rotations", int32), ("out_step", int64), ("suh", pointer * 4),
    )  # fmt: skip


class Gate(Struct):
    """exl_gate_args."""

    _fields_ = (
        ("gate", pointer), ("up", pointer), ("out", pointer), ("gate_stride", int64), ("up_stride", int64),
        ("out_stride", int64), ("rows", int32), ("width", int32), ("activation", int32),
    )  # fmt: skip


class Logits(Struct):
    """exl_logits_args."""

    _fields_ = (
        ("x", pointer), ("out", pointer), ("x_stride", int64), ("out_stride", int64), ("rows", int32),
        ("vocab", int32), ("x_type", int32), ("softcap", float32),
    )  # fmt: skip


class Sample(Struct):
    """exl_sample_args."""

    _fields_ = (
        ("logits", pointer), ("scratch", pointer), ("row", pointer), ("history", pointer), ("bias_ids", pointer),
        ("biases", pointer), ("mask", pointer), ("tokens", pointer), ("logits_stride", int64),
        ("history_stride", int64), ("bias_stride", int64), ("mask_stride", int64), ("rows", int32), ("vocab", int32),
    )  # fmt: skip


def launch(library: Library, name: str, arguments: Struct) -> None:
    """Calls `name` with its struct and waits; a status other than ok is a KernelError."""
    library.call(name, ctypes.byref(arguments))
