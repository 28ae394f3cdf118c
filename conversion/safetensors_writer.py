"""Writes safetensors files, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import whole_file

_TYPES = {"int16": "I16", "int32": "I32", "float16": "F16", "float32": "F32", "uint8": "U8"}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """A tensor to be written. read: its little-endian bytes, asked for when their turn has come."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], bytes]


def entry_of(name: str, array: np.ndarray[Any, Any]) -> Entry:
    """An array in memory, of a type that safetensors knows."""
    return Entry(name, _TYPES[array.dtype.name], array.shape, array.nbytes, array.tobytes)


def write_safetensors(path: Path, entries: list[Entry]) -> None:
    """All tensors in the order given. The file is whole or not there."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.type,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            content = entry.read()
            assert len(content) == entry.nbytes, f"{entry.name}: {len(content)} bytes, {entry.nbytes} were promised"
            file.write(content)
