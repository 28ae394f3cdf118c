"""GGUF files as a Checkpoint: parts joined, names translated, permuted rows put back into Hugging Face order."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exllama.errors import FormatError, UnsupportedModelError
from exllama.formats.stored import Bytes, Floats, StoredTensor
from exllama.loader.checkpoint import Checkpoint
from exllama.loader.files import PositionalFile
from exllama.loader.gguf_config import read_config
from exllama.loader.gguf_file import GgufFile, TensorInfo
from exllama.loader.gguf_names import PERMUTED, ROPE_TENSORS, hugging_face_name, is_ignored
from exllama.tokenizer.from_gguf import read_gguf_tokenizer
from exllama.tokenizer.tokenizer import Tokenizer

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MAX_FACTORS = 1 << 16


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file. heads > 0: the rows of each head are stored as pairs and are read back as halves."""

    name: str
    info: TensorInfo
    source: PositionalFile
    heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def type(self) -> str:
        return self.info.block.name

    @property
    def nbytes(self) -> int:
        return self.info.nbytes

    @property
    def file(self) -> Path:
        return self.source.path

    def read_rows(self, start: int, stop: int) -> Bytes:
        """See StoredTensor. Of a permuted tensor, the heads that the rows belong to are read whole."""
        num_rows = self.nbytes // self._row_bytes
        if not 0 <= start <= stop <= num_rows:
            raise IndexError(f"rows {start}:{stop} of {self.name}, which has {num_rows}")
        if not self.heads:
            return self._read(start, stop)
        if len(self.shape) == 1:
            values = self._read(0, 1).reshape(self.shape[0], -1)
            reordered: Bytes = values[self._stored_order(0, self.shape[0])].reshape(1, -1)
            return reordered
        head_rows = num_rows // self.heads
        first, last = start // head_rows * head_rows, -(-stop // head_rows) * head_rows
        rows: Bytes = self._read(first, last)[self._stored_order(start, stop) - first]
        return rows

    @property
    def _row_bytes(self) -> int:
        return self.shape[-1] // self.info.block.elements * self.info.block.nbytes

    def _read(self, start: int, stop: int) -> Bytes:
        rows = np.empty((stop - start, self._row_bytes), np.uint8)
        self.source.read_into(self.info.offset + start * self._row_bytes, rows)
        return rows

    def _stored_order(self, start: int, stop: int) -> NDArray[np.int64]:
        """Where the Hugging Face rows start .. stop - 1 are stored: row s * D/2 + p of a head lies at 2p + s."""
        head_rows = self.shape[0] // self.heads
        rows = np.arange(start, stop, dtype=np.int64)
        head, inside = np.divmod(rows, head_rows)
        half, pair = np.divmod(inside, head_rows // 2)
        order: NDArray[np.int64] = head * head_rows + 2 * pair + half
        return order


class GgufCheckpoint(Checkpoint):
    """An open GGUF model, in one file or in parts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: list[GgufFile] = []
        try:
            self._parts = _open_parts(path)
            self.metadata = self._parts[0].metadata
            stored = _join(self._parts)
            self.config = read_config(self.metadata, set(stored), self._vocab_rows(stored), self._factors(stored))
            self.tensors: dict[str, StoredTensor] = self._translate(stored)
        except BaseException:
            self.close()
            raise

    def load_tokenizer(self) -> Tokenizer:
        """See Checkpoint."""
        return read_gguf_tokenizer(self.metadata, self.config["vocab_size"])

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _vocab_rows(self, stored: dict[str, tuple[GgufFile, TensorInfo]]) -> int:
        if "token_embd.weight" not in stored:
            hint = "Files with a vocabulary alone, adapters and image projectors are not models"
            raise FormatError(self.path, "tensors", "no token_embd.weight", "a language model", hint)
        shape = stored["token_embd.weight"][1].shape
        if len(shape) != 2:
            raise FormatError(self.path, "shape of token_embd.weight", shape, "two dimensions")
        return shape[0]

    def _factors(self, stored: dict[str, tuple[GgufFile, TensorInfo]]) -> Callable[[str], Floats]:
        def read(name: str) -> Floats:
            part, info = stored[name]
            if info.block.name != "F32" or len(info.shape) != 1 or info.shape[0] > _MAX_FACTORS:
                raise FormatError(part.path, name, f"{info.block.name} {info.shape}", "a short F32 vector")
            return np.frombuffer(part.file.read(info.offset, info.nbytes), "<f4")

        return read

    def _translate(self, stored: dict[str, tuple[GgufFile, TensorInfo]]) -> dict[str, StoredTensor]:
        arch = self.metadata.text("general.architecture")
        tensors: dict[str, StoredTensor] = {}
        for stored_name, (part, info) in stored.items():
            if stored_name in ROPE_TENSORS or is_ignored(stored_name):
                continue
            name = hugging_face_name(stored_name)
            if name is None:
                message = f"{part.path}: a {arch} model does not have the tensor {stored_name}"
                raise UnsupportedModelError(f"{message}, so this file is another kind of model")
            tensors[name] = GgufTensor(name, info, part.file, self._permuted_heads(arch, name, info, part))
        return tensors

    def _permuted_heads(self, arch: str | None, name: str, info: TensorInfo, part: GgufFile) -> int:
        kinds = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        kind = next((key for key in kinds if f".{key}." in name), None)
        if arch not in PERMUTED or kind is None:
            return 0
        heads = int(self.config[kinds[kind]])
        if info.shape[0] != heads * self.config["head_dim"] or self.config["head_dim"] % 2:
            expected = f"{heads} heads of {self.config['head_dim']} rows"
            raise FormatError(part.path, f"shape of {info.name}", info.shape, expected)
        if len(info.shape) == 1 and info.block.elements > 1:
            raise FormatError(part.path, f"type of {info.name}", info.block.name, "F32, F16 or BF16")
        return heads


def _open_parts(path: Path) -> list[GgufFile]:
    """All parts of a model, first part first, given any of them."""
    match = _PART.fullmatch(path.name)
    first = GgufFile(path.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf") if match else path)
    parts = [first]
    try:
        count = first.metadata.integer("split.count", 0) or 1
        if count > 1 and (match is None or int(match["count"]) != count):
            expected = f"a name that ends in -00001-of-{count:05}.gguf"
            raise FormatError(path, "split.count", count, expected, "Give the parts their original names")
        for number in range(2, count + 1):
            parts.append(_open_part(path, match, number, count))
        _check_split(parts, count)
    except BaseException:
        for part in parts:
            part.close()
        raise
    return parts


def _open_part(path: Path, match: re.Match[str] | None, number: int, count: int) -> GgufFile:
    assert match is not None
    part = path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
    if not part.exists():
        raise FormatError(part, "file", "nothing", f"part {number} of {count}", "Fetch all parts into one folder")
    return GgufFile(part)


def _check_split(parts: list[GgufFile], count: int) -> None:
    if count == 1:
        return
    for index, part in enumerate(parts):
        found = part.metadata.integer("split.no"), part.metadata.integer("split.count")
        if found != (index, count):
            raise FormatError(part.path, "split.no, split.count", found, (index, count))
    total, expected = sum(len(part.tensors) for part in parts), parts[0].metadata.integer("split.tensors.count")
    if total != expected:
        raise FormatError(parts[0].path, "split.tensors.count", expected, f"the {total} tensors of all parts")


def _join(parts: list[GgufFile]) -> dict[str, tuple[GgufFile, TensorInfo]]:
    joined: dict[str, tuple[GgufFile, TensorInfo]] = {}
    for part in parts:
        for name, info in part.tensors.items():
            if name in joined:
                raise FormatError(part.path, name, "a tensor of another part", "every name once")
            joined[name] = part, info
    return joined
