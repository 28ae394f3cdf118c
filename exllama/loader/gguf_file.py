"""One GGUF file: header, metadata, and a table of tensors whose every offset has been checked against the file.

Layout (little endian): "GGUF", version, counts, key/value pairs, tensor table, padding to the alignment, data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from exllama.errors import FormatError
from exllama.formats.gguf_types import GGUF_TYPES, BlockType, describe_refused
from exllama.loader.files import PositionalFile
from exllama.loader.gguf_metadata import Cursor, Metadata, read_metadata

VERSIONS = (2, 3)
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_NAME = 63
MAX_ALIGNMENT = 1 << 16
_LEAST_TENSOR, _LEAST_KEY = 33, 13  # bytes that the shortest entry of each table takes


@dataclass(frozen=True)
class TensorInfo:
    """A row of the tensor table. shape is in torch's order (reversed ne); offset is from the start of the file."""

    name: str
    shape: tuple[int, ...]
    block: BlockType
    offset: int
    nbytes: int


class GgufFile:
    """An open GGUF file (one part, if the model is split) that passed all checks of its header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = PositionalFile(path)
        try:
            cursor = Cursor(self.file)
            num_tensors, num_keys = _read_counts(cursor)
            self.metadata: Metadata = read_metadata(cursor, num_keys)
            self.tensors = _read_tensors(cursor, num_tensors, _alignment(self.metadata))
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        self.file.close()


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    path = cursor.file.path
    magic = cursor.take(4, "magic")
    if magic != b"GGUF":
        raise FormatError(path, "magic", magic, "b'GGUF'", "This is not a GGUF file")
    version = cursor.integer("I", "version")
    if version & 0xFFFF == 0:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        found, hint = f"{swapped} in big-endian order", "Convert the model again on a little-endian machine"
        raise FormatError(path, "version", found, "a little-endian file", hint)
    if version not in VERSIONS:
        raise FormatError(path, "version", version, "2 or 3", "Convert the model again with a current converter")
    num_tensors, num_keys = cursor.integer("Q", "tensor count"), cursor.integer("Q", "key count")
    for field, count, least, limit in (
        ("tensor count", num_tensors, _LEAST_TENSOR, MAX_TENSORS), ("key count", num_keys, _LEAST_KEY, MAX_KEYS),
    ):  # fmt: skip
        most = min(limit, cursor.remaining // least)
        if count > most:
            raise FormatError(path, field, count, f"at most {most} in a file of {cursor.file.size} bytes")
    return num_tensors, num_keys


def _alignment(metadata: Metadata) -> int:
    value = metadata.integer("general.alignment", 32)
    if value is None or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise metadata.error("general.alignment", value, f"a power of two from 1 to {MAX_ALIGNMENT}")
    return value


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    rows: dict[str, tuple[tuple[int, ...], BlockType, int]] = {}
    for index in range(count):
        name = cursor.text(f"name of tensor {index}", MAX_NAME)
        if name in rows:
            raise FormatError(cursor.file.path, f"tensor {index}", f"a second {name!r}", "every name once")
        rows[name] = _read_row(cursor, name)
    begin = -(-cursor.position // alignment) * alignment
    tensors = {name: _locate(cursor, name, row, begin, alignment) for name, row in rows.items()}
    _check_overlaps(cursor.file.path, tensors)
    return tensors


def _read_row(cursor: Cursor, name: str) -> tuple[tuple[int, ...], BlockType, int]:
    path = cursor.file.path
    num_dims = cursor.integer("I", f"dimensions of {name}")
    if not 1 <= num_dims <= 4:
        raise FormatError(path, f"dimensions of {name}", num_dims, "1 to 4")
    ne = [cursor.integer("q", f"dimension {axis} of {name}") for axis in range(num_dims)]
    number, offset = cursor.integer("i", f"type of {name}"), cursor.integer("Q", f"offset of {name}")
    if min(ne) < 1 or math.prod(ne) >= 1 << 63:
        raise FormatError(path, f"shape of {name}", ne, "positive dimensions with a product below 2^63")
    block = GGUF_TYPES.get(number)
    if block is None:
        supported = ", ".join(block.name for block in GGUF_TYPES.values())
        raise FormatError(path, f"type of {name}", describe_refused(number), f"one of {supported}")
    if ne[0] % block.elements:
        expected = f"rows of a multiple of {block.elements} elements ({block.name})"
        raise FormatError(path, f"shape of {name}", ne, expected)
    return tuple(reversed(ne)), block, offset


def _locate(
    cursor: Cursor, name: str, row: tuple[tuple[int, ...], BlockType, int], begin: int, alignment: int
) -> TensorInfo:
    shape, block, offset = row
    nbytes = math.prod(shape) // block.elements * block.nbytes
    if offset % alignment:
        raise FormatError(cursor.file.path, f"offset of {name}", offset, f"a multiple of {alignment}")
    if begin + offset + nbytes > cursor.file.size:
        found = f"{nbytes} bytes at {begin + offset} in a file of {cursor.file.size}"
        hint = "The download may be incomplete"
        raise FormatError(cursor.file.path, f"data of {name}", found, "data inside the file", hint)
    return TensorInfo(name, shape, block, begin + offset, nbytes)


def _check_overlaps(path: Path, tensors: dict[str, TensorInfo]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            found, expected = f"an overlap with {before}", "tensors that do not share bytes"
            raise FormatError(path, f"data of {tensor.name}", found, expected)
        end, before = tensor.offset + tensor.nbytes, tensor.name
