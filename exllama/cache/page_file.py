"""Files of KV pages: a header that says of what, then one record per page, only ever appended to.

    file    magic "EXLPAGES" | u32 version | u32 length | JSON header | 32 bytes blake2b of all before
    record  magic "PAGE" | u32 length of content | u64 length of data | 32 bytes parent address | 32 bytes address
            | content (tokens and images of this page, cache/prefix.py) | data (K and V) | blake2b, 32 bytes

Integers are little-endian. The header names the model and the shape of the cache; a file with another one is of no use.
The address is the digest of the whole chain of tokens (Prefix.address), so whoever has the tokens can ask for the page,
and the chain of parents can be followed through a file. Files are hostile: all lengths are compared with the file's
size before anything is allocated, and nothing is believed that the checksum does not cover.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from exllama.cache.prefix import Images, Prefix, unpack_content
from exllama.errors import FormatError
from exllama.formats.bounded_json import parse_object

VERSION = 1
SUFFIX = ".pages"
_MAGIC, _RECORD_MAGIC = b"EXLPAGES", b"PAGE"
_START = struct.Struct("<8sII")
_RECORD = struct.Struct("<4sIQ32s32s")
_CHECKSUM = 32
_MAX_HEADER = 1 << 16
_MAX_CONTENT = 1 << 20  # of one page; 256 tokens take 1 KiB

Header = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """Where a page is in its file, and what it is."""

    offset: int
    content_nbytes: int
    data_nbytes: int
    parent: bytes
    address: bytes

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + _RECORD.size + self.content_nbytes + self.data_nbytes + _CHECKSUM


def write_header(file: IO[bytes], header: Header) -> None:
    """Begins a file."""
    text = json.dumps(header, sort_keys=True).encode()
    start = _START.pack(_MAGIC, VERSION, len(text)) + text
    file.write(start + _checksum(start))


def append_record(file: IO[bytes], prefix: Prefix, data: NDArray[np.uint8]) -> Record:
    """Writes a page at the end of `file`, which is at its end."""
    assert prefix.parent is not None, "a root has no page"
    offset, content = file.seek(0, os.SEEK_END), prefix.content
    head = _RECORD.pack(_RECORD_MAGIC, len(content), data.nbytes, prefix.parent.address, prefix.address) + content
    file.write(head)
    file.write(data.data)
    file.write(_checksum(head, data))
    file.flush()
    return Record(offset, len(content), data.nbytes, prefix.parent.address, prefix.address)


def is_page_file(path: Path) -> bool:
    """Whether a file begins as ours do, whatever follows."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_header(file: IO[bytes], path: Path, expected: Header) -> None:
    """Raises FormatError unless `file` begins with an intact header that is equal to `expected`."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(_START.size)
    if len(start) < _START.size or start[: len(_MAGIC)] != _MAGIC:
        raise FormatError(path, "start of file", start[:8], _MAGIC, "This is no file of cache pages")
    _, version, length = _START.unpack(start)
    if version != VERSION:
        raise FormatError(path, "version", version, VERSION, "Another version of exllama wrote this file")
    if length > _MAX_HEADER or _START.size + length + _CHECKSUM > size:
        raise FormatError(path, "length of header", length, f"at most {min(size, _MAX_HEADER)}")
    text = file.read(length)
    if file.read(_CHECKSUM) != _checksum(start + text):
        raise FormatError(path, "checksum of header", "another", "that of the bytes before it", "The file is damaged")
    found = parse_object(text, path, "header")
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            hint = "The pages are of another model, cache or machine"
            raise FormatError(path, key, found.get(key), expected.get(key), hint)


def scan_records(file: IO[bytes], path: Path, page_nbytes: int, begin: int) -> Iterator[Record]:
    """The records from offset `begin` to the end; their contents are not read.

    Raises FormatError where something else than a whole record follows.
    """
    size, offset = os.fstat(file.fileno()).st_size, begin
    while offset < size:
        file.seek(offset)
        start = file.read(_RECORD.size)
        if len(start) < _RECORD.size:
            raise FormatError(path, f"record at byte {offset}", f"{len(start)} bytes", _RECORD.size, "It is cut off")
        magic, content_nbytes, data_nbytes, parent, address = _RECORD.unpack(start)
        if magic != _RECORD_MAGIC or content_nbytes > _MAX_CONTENT or data_nbytes != page_nbytes:
            found = (magic, content_nbytes, data_nbytes)
            raise FormatError(path, f"record at byte {offset}", found, (_RECORD_MAGIC, "a page", page_nbytes))
        record = Record(offset, content_nbytes, data_nbytes, parent, address)
        if record.end > size:
            raise FormatError(path, f"record at byte {offset}", size - offset, record.end - offset, "It is cut off")
        yield record
        offset = record.end


def read_record(file: IO[bytes], path: Path, record: Record) -> tuple[bytes, Images, NDArray[np.uint8]]:
    """(tokens, images, data) of a record. Raises FormatError when the checksum is wrong."""
    file.seek(record.offset)
    head = file.read(_RECORD.size + record.content_nbytes)
    data = np.empty(record.data_nbytes, np.uint8)
    file.readinto(data.data)  # type: ignore[attr-defined]
    named = _RECORD.pack(_RECORD_MAGIC, record.content_nbytes, record.data_nbytes, record.parent, record.address)
    if head[: _RECORD.size] != named or file.read(_CHECKSUM) != _checksum(head, data):
        raise FormatError(path, f"checksum of the record at byte {record.offset}", "another", "that of its bytes")
    try:
        tokens, images = unpack_content(head[_RECORD.size :])
    except ValueError as error:
        raise FormatError(path, f"content of the record at byte {record.offset}", str(error), "tokens") from error
    return tokens, images, data


def _checksum(*parts: bytes | NDArray[np.uint8]) -> bytes:
    digest = blake2b(digest_size=_CHECKSUM)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.data)
    return digest.digest()
