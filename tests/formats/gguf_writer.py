"""GGUF files written field by field, so that any field can be wrong. The gguf package writes the right ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
U32, F32 = 4, 6


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def value(kind: int, content: Any) -> bytes:
    return string(content) if kind == STRING else struct.pack("<" + SCALARS[kind], content)


def pair(key: str | bytes, kind: int, content: Any) -> bytes:
    """A key and its value; `content` as bytes is put there as it is."""
    return string(key) + struct.pack("<i", kind) + (content if isinstance(content, bytes) else value(kind, content))


def array(kind: int, items: Sequence[Any], count: int | None = None) -> bytes:
    head = struct.pack("<iQ", kind, len(items) if count is None else count)
    return head + b"".join(value(kind, item) for item in items)


@dataclass
class Tensor:
    """A row of the tensor table."""

    name: str | bytes
    ne: Sequence[int] = (32,)
    type: int = 0
    offset: int = 0
    num_dims: int | None = None

    def encode(self) -> bytes:
        dims = len(self.ne) if self.num_dims is None else self.num_dims
        sizes = b"".join(struct.pack("<q", size) for size in self.ne)
        return string(self.name) + struct.pack("<I", dims) + sizes + struct.pack("<iQ", self.type, self.offset)


@dataclass
class File:
    """A whole file. keys: encoded pairs; data: bytes after the padding; the counts can lie."""

    keys: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    num_keys: int | None = None
    num_tensors: int | None = None
    alignment: int = 32

    def encode(self) -> bytes:
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_keys = len(self.keys) if self.num_keys is None else self.num_keys
        head = self.magic + struct.pack("<IQQ", self.version, num_tensors, num_keys) + b"".join(self.keys)
        head += b"".join(tensor.encode() for tensor in self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path


def small_file() -> File:
    """A file with every kind of value and two tensors; right in every respect."""
    keys = [
        pair("general.architecture", STRING, "llama"),
        *(pair(f"scalar.{kind}", kind, 1) for kind in SCALARS),
        pair("strings", ARRAY, array(STRING, ["a", "", "ccc"])),
        *(pair(f"array.{kind}", ARRAY, array(kind, [1, 0, 1])) for kind in SCALARS),
        pair("empty", ARRAY, array(U32, [])),
    ]
    tensors = [Tensor("a.weight", (32, 2), 2, 0), Tensor("b.weight", (8,), 0, 64)]
    return File(keys, tensors, bytes(range(36)) + bytes(28) + bytes(32))


def llama_keys(**changes: bytes | None) -> list[bytes]:
    """The metadata of a tiny llama model; `changes` adds encoded pairs, replaces them by name, or drops them (None)."""
    numbers = {
        "block_count": 1, "context_length": 64, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2,
    }  # fmt: skip
    keys: dict[str, bytes | None] = {"architecture": pair("general.architecture", STRING, "llama")}
    keys |= {name: pair(f"llama.{name}", U32, number) for name, number in numbers.items()}
    keys["eps"] = pair("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)
    return [content for content in (keys | changes).values() if content is not None]
