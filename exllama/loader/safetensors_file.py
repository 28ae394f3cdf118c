"""One safetensors file: [ 8 bytes: length of the header ][ header: JSON ][ data ].

The header names every tensor's type, shape and place. All of it is checked against the file before anything is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exllama.errors import FormatError
from exllama.formats.bounded_json import parse_object
from exllama.formats.stored import Bytes
from exllama.loader.files import PositionalFile

MAX_HEADER = 4 << 20
MAX_DIMENSIONS = 8
MAX_NAME = 512

# Bytes of an element. The types below are the ones that loading knows what to do with, or that old files carry along.
_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class SafeTensor:
    """A tensor of a safetensors file; offset is from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    source: PositionalFile

    @property
    def file(self) -> Path:
        return self.source.path

    def read_rows(self, start: int, stop: int) -> Bytes:
        """See StoredTensor."""
        num_rows = math.prod(self.shape[:-1])
        if not 0 <= start <= stop <= num_rows:
            raise IndexError(f"rows {start}:{stop} of {self.name}, which has {num_rows}")
        row_bytes = self.nbytes // max(1, num_rows)
        rows = np.empty((stop - start, row_bytes), np.uint8)
        self.source.read_into(self.offset + start * row_bytes, rows)
        return rows


class SafetensorsFile:
    """An open safetensors file that passed all checks of its header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = PositionalFile(path)
        try:
            self.tensors = self._read_header()
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        self.file.close()

    def _read_header(self) -> dict[str, SafeTensor]:
        size = self.file.size
        if size < 10:
            raise FormatError(self.path, "file size", size, "at least 10 bytes", "The download may be incomplete")
        length = int.from_bytes(self.file.read(0, 8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise FormatError(self.path, "header length", length, f"2 to {min(MAX_HEADER, size - 8)}")
        raw = self.file.read(8, length)
        if not raw.startswith(b"{"):
            raise FormatError(self.path, "header", raw[:16], "a JSON object that begins with {")
        header = parse_object(raw, self.path, "header", MAX_HEADER)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise FormatError(self.path, "__metadata__", metadata, "an object of strings")
        begin = 8 + length
        tensors = {name: self._check(name, entry, begin) for name, entry in header.items()}
        self._check_places(tensors, begin)
        return tensors

    def _check(self, name: str, entry: Any, begin: int) -> SafeTensor:
        if not 1 <= len(name) <= MAX_NAME:
            raise FormatError(self.path, "name of a tensor", name, f"1 to {MAX_NAME} characters")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FormatError(self.path, name, entry, "dtype, shape and data_offsets")
        kind, shape = entry["dtype"], entry["shape"]
        if not isinstance(kind, str) or kind not in _SIZES:
            raise FormatError(self.path, f"dtype of {name}", kind, f"one of {', '.join(_SIZES)}")
        if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
            raise FormatError(self.path, f"shape of {name}", shape, f"up to {MAX_DIMENSIONS} whole numbers")
        offsets = entry["data_offsets"]
        if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise FormatError(self.path, f"data_offsets of {name}", offsets, "[begin, end]")
        nbytes = math.prod(shape) * _SIZES[kind]
        if offsets[1] - offsets[0] != nbytes:
            found = f"{offsets[1] - offsets[0]} bytes"
            raise FormatError(self.path, f"data_offsets of {name}", found, f"{nbytes} bytes for {kind} {shape}")
        if begin + offsets[1] > self.file.size:
            expected, hint = f"at most {self.file.size - begin}", "The download may be incomplete"
            raise FormatError(self.path, f"data_offsets of {name}", offsets, expected, hint)
        return SafeTensor(name, tuple(shape), kind, begin + offsets[0], nbytes, self.file)

    def _check_places(self, tensors: dict[str, SafeTensor], begin: int) -> None:
        """Tensors follow each other without overlaps and holes up to the end of the file, as the format demands."""
        end, before = begin, "the header"
        for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
            if tensor.offset != end:
                found = f"it begins at {tensor.offset}, and {before} ends at {end}"
                raise FormatError(self.path, f"data_offsets of {tensor.name}", found, "no overlap and no hole")
            end, before = tensor.offset + tensor.nbytes, tensor.name
        if end != self.file.size:
            raise FormatError(self.path, "file size", self.file.size, f"{end}, where the last tensor ends")


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
