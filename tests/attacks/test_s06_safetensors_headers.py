"""Hostile headers of safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exllama.errors import FormatError
from exllama.loader.safetensors_file import MAX_HEADER, SafetensorsFile
from tests.formats.limits import measured_refusal, refusal
from tests.formats.safetensors_writer import encode, entry

ENTRY = json.dumps(entry()).encode()
GOOD = encode({"a": entry(), "b": entry(offsets=(8, 16))}, bytes(16))

HEADERS: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "file size"),
    "a length alone": (bytes(8), "file size"),
    "a header of no length": (bytes(64), "header length"),
    "a header beyond the file": (encode({}, bytes(8), length=10**6), "header length"),
    "a header of 2^64 - 1 bytes": (encode({}, bytes(8), length=(1 << 64) - 1), "header length"),
    "a header of more than the limit": (encode(b"{" + b" " * MAX_HEADER + b"}"), "header length"),
    "no object": (encode(b"[" + b" " * 20 + b"]"), "header"),
    "blanks in front": (encode(b"   {}     "), "header"),
    "no JSON": (encode(b"{" + b"x" * 20), "header"),
    "no UTF-8": (encode(b'{"\xff": 1}        '), "header"),
    "deep JSON": (encode(b"{" + b'"a":[' * 50_000), "header"),
    "deep JSON of objects": (encode(b'{"a":' * 50_000), "header"),
    "a key twice": (encode(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", bytes(8)), "header"),
    "NaN": (encode(b'{"a": NaN}          '), "header"),
    "a million tensors": (encode(b"{" + b'"":0,' * (1 << 19) + b'"a":0}'), "header"),
    "a million lists": (encode(b'{"a":[' + b"[]," * 1_300_000 + b"[]]}"), "header"),
    "a text of emoji": (encode(b'{"__metadata__":{"a":"' + b"\xf0\x9f\x99\x82" * 900_000 + b'"}}', b"x"), "file size"),
    "metadata that are no text": (encode({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata that are a list": (encode({"__metadata__": [1]}), "__metadata__"),
    "an entry that is a number": (encode({"a": 5}, bytes(8)), "a"),
    "an entry with a field too few": (encode({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "a"),
    "an entry with a field too many": (encode({"a": {**entry(), "x": 1}}, bytes(8)), "a"),
    "an unknown type": (encode({"a": entry("F4")}, bytes(8)), "dtype"),
    "a type that is a list": (encode({"a": entry([])}, bytes(8)), "dtype"),
    "a shape that wraps to 8 bytes": (encode({"a": entry(shape=[(1 << 62) + 2])}, bytes(8)), "data_offsets"),
    "a shape whose product wraps to 2": (encode({"a": entry(shape=[1 << 33, 1 << 33, 2])}, bytes(8)), "data_offsets"),
    "a shape of 2^64": (encode({"a": entry(shape=[1 << 64])}, bytes(8)), "shape"),
    "a negative shape": (encode({"a": entry(shape=[-2])}, bytes(8)), "shape"),
    "two negative dimensions": (encode({"a": entry(shape=[-2, -1])}, bytes(8)), "shape"),
    "a shape of fractions": (encode({"a": entry(shape=[2.0])}, bytes(8)), "shape"),
    "a shape of truth": (encode({"a": entry(shape=[True, 2])}, bytes(8)), "shape"),
    "a shape of a thousand dimensions": (encode({"a": entry(shape=[1] * 1000)}, bytes(8)), "shape"),
    "offsets backwards": (encode({"a": entry(offsets=[8, 0])}, bytes(8)), "data_offsets"),
    "negative offsets": (encode({"a": entry(offsets=[-8, 0])}, bytes(8)), "data_offsets"),
    "one offset": (encode({"a": entry(offsets=[8])}, bytes(8)), "data_offsets"),
    "offsets beyond the file": (encode({"a": entry(offsets=[8, 16])}, bytes(8)), "data_offsets"),
    "offsets that wrap around": (encode({"a": entry(offsets=[(1 << 63) - 8, (1 << 63)])}, bytes(8)), "data_offsets"),
    "more bytes than the shape has": (encode({"a": entry(offsets=[0, 16])}, bytes(16)), "data_offsets"),
    "tensors that overlap": (encode({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "data_offsets"),
    "the same bytes twice": (encode({"a": entry(), "b": entry()}, bytes(8)), "data_offsets"),
    "a hole": (encode({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "data_offsets"),
    "a hole in front": (encode({"a": entry(offsets=[8, 16])}, bytes(16)), "data_offsets"),
    "bytes that belong to nobody": (encode({"a": entry()}, bytes(9)), "file size"),
    "an empty tensor in another": (encode({"a": entry(), "b": entry("F32", [0], [4, 4])}, bytes(8)), "data_offsets"),
    "an empty tensor beyond the file": (encode({"a": entry("F32", [0], [99, 99])}, bytes(8)), "data_offsets"),
    "a name of no length": (encode({"": entry()}, bytes(8)), "name"),
    "a long name": (encode({"a" * 600: entry()}, bytes(8)), "name"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_s06_hostile_headers_are_refused(tmp_path: Path, name: str) -> None:
    """S06: a typed error that names the field, in under a second, within 64 MiB."""
    raw, field = HEADERS[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(raw)
    error: Any = measured_refusal(lambda: SafetensorsFile(path), path)
    assert isinstance(error, FormatError)
    assert error.field.startswith(field), error


def test_s06_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    """S06: downloads end anywhere."""
    path = tmp_path / "cut.safetensors"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        assert isinstance(refusal(lambda: SafetensorsFile(path), path), FormatError)
    path.write_bytes(GOOD)
    assert set(SafetensorsFile(path).tensors) == {"a", "b"}


def test_s06_a_header_of_gigabytes(tmp_path: Path) -> None:
    """S06: a file that is really as long as its header claims."""
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.write((1 << 33).to_bytes(8, "little") + b"{")
        file.truncate(1 << 34)
    measured_refusal(lambda: SafetensorsFile(path), path)
