"""Hostile GGUF files: every limit has its file, a header is cut at every byte, and fuzzing finds no other error."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exllama.errors import ExllamaError, FormatError
from exllama.formats.gguf_types import GGUF_TYPES
from exllama.loader.gguf_file import MAX_KEYS, MAX_TENSORS, GgufFile
from exllama.loader.gguf_metadata import MAX_STRINGS
from tests.formats.gguf_writer import ARRAY, STRING, U32, File, Tensor, array, pair, small_file, string
from tests.formats.limits import measured_refusal, refusal

ALIGNMENT = "general.alignment"
HUGE = (1 << 63) - 1


def keys(*pairs: bytes) -> File:
    return File(list(pairs), [Tensor("t")], bytes(128))


def tensors(*rows: Tensor, data: int = 4096) -> File:
    return File([], list(rows), bytes(data))


LIMITS: dict[str, tuple[File, str]] = {
    "magic": (File(magic=b"GGML"), "magic"),
    "version 1": (File(version=1), "version"),
    "version 4": (File(version=4), "version"),
    "big-endian": (File(version=3 << 24), "version"),
    "more tensors than bytes": (File(num_tensors=HUGE), "tensor count"),
    "a negative number of tensors": (File(num_tensors=(1 << 64) - 1), "tensor count"),
    "more tensors than the file can hold": (File(data=bytes(3200), num_tensors=101), "tensor count"),
    "more keys than bytes": (File(num_keys=HUGE), "key count"),
    "more keys than the file can hold": (File(data=bytes(1300), num_keys=104), "key count"),
    "a key of no length": (keys(string("") + struct.pack("<iI", U32, 0)), "length of key 0"),
    "a key beyond the file": (keys(string("k", length=HUGE)), "length of key 0"),
    "a long key": (keys(pair("k" * 70_000, U32, 0)), "length of key 0"),
    "a key that is not UTF-8": (keys(pair(b"\xff\xfe", U32, 0)), "key 0"),
    "a key twice": (keys(pair("k", U32, 0), pair("k", U32, 1)), "key 1"),
    "a type of value that does not exist": (keys(pair("k", 13, bytes(8))), "type of k"),
    "a negative type": (keys(pair("k", -1, bytes(8))), "type of k"),
    "a string beyond the file": (keys(pair("k", STRING, string("v", length=1 << 62))), "k"),
    "a string of length 2^63": (keys(pair("k", STRING, string("v", length=1 << 63))), "k"),
    "a string of length 2^64 - 1": (keys(pair("k", STRING, string("v", length=(1 << 64) - 1))), "k"),
    "an array beyond the file": (keys(pair("k", ARRAY, array(U32, [1], count=HUGE))), "length of k"),
    "an array whose size wraps to 4": (keys(pair("k", ARRAY, array(U32, [1], count=(1 << 62) + 1))), "length of k"),
    "an array of strings beyond the file": (keys(pair("k", ARRAY, array(STRING, ["a"], count=1 << 40))), "length of k"),
    "a string in an array beyond the file": (
        keys(pair("k", ARRAY, struct.pack("<iQ", STRING, 2) + string("a", length=HUGE) + string("b"))), "k"),
    "an array of arrays": (keys(pair("k", ARRAY, struct.pack("<iQ", ARRAY, 1) + array(U32, [1]))), "element type of k"),
    "an array of nothing known": (keys(pair("k", ARRAY, struct.pack("<iQ", 99, 1) + bytes(16))), "element type of k"),
    "an alignment of 0": (keys(pair(ALIGNMENT, U32, 0)), ALIGNMENT),
    "an alignment of 3": (keys(pair(ALIGNMENT, U32, 3)), ALIGNMENT),
    "an alignment of 2^17": (keys(pair(ALIGNMENT, U32, 1 << 17)), ALIGNMENT),
    "an alignment that is text": (keys(pair(ALIGNMENT, STRING, "32")), ALIGNMENT),
    "a tensor without name": (tensors(Tensor("")), "length of name of tensor 0"),
    "a tensor with a long name": (tensors(Tensor("n" * 64)), "length of name of tensor 0"),
    "a tensor name that is not UTF-8": (tensors(Tensor(b"\xc0")), "name of tensor 0"),
    "a tensor twice": (tensors(Tensor("t"), Tensor("t", offset=128)), "tensor 1"),
    "no dimensions": (tensors(Tensor("t", ne=())), "dimensions of t"),
    "five dimensions": (tensors(Tensor("t", ne=(1, 1, 1, 1, 1))), "dimensions of t"),
    "2^32 - 1 dimensions": (tensors(Tensor("t", num_dims=(1 << 32) - 1)), "dimensions of t"),
    "a dimension of 0": (tensors(Tensor("t", ne=(32, 0))), "shape of t"),
    "a negative dimension": (tensors(Tensor("t", ne=(32, -1))), "shape of t"),
    "two negative dimensions": (tensors(Tensor("t", ne=(-32, -1))), "shape of t"),
    "dimensions whose product wraps to 0": (tensors(Tensor("t", ne=(1 << 32, 1 << 32))), "shape of t"),
    "dimensions cut to int32": (tensors(Tensor("t", ne=((1 << 32) + 32,))), "data of t"),
    "a row that is not whole blocks": (tensors(Tensor("t", ne=(33,), type=2)), "shape of t"),
    "an offset beyond the file": (tensors(Tensor("t", offset=1 << 40)), "data of t"),
    "an offset that wraps around": (tensors(Tensor("t", offset=(1 << 64) - 64)), "data of t"),
    "data beyond the file": (tensors(Tensor("t", ne=(1 << 20,))), "data of t"),
    "an unaligned offset": (tensors(Tensor("t", offset=16)), "offset of t"),
    "tensors that overlap": (tensors(Tensor("t"), Tensor("u", ne=(64,)), Tensor("v", offset=96)), "data of"),
    "the same data twice": (tensors(Tensor("t"), Tensor("u")), "data of"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_limits(tmp_path: Path, name: str) -> None:
    content, field = LIMITS[name]
    path = content.write(tmp_path / "hostile.gguf")
    error = measured_refusal(lambda: GgufFile(path), path)
    assert isinstance(error, FormatError)
    assert error.field.startswith(field)


def test_every_type_id(tmp_path: Path) -> None:
    for number in [*range(501), -1, (1 << 31) - 1]:
        path = tensors(Tensor("t.weight", ne=(256,), type=number)).write(tmp_path / "type.gguf")
        if number in GGUF_TYPES:
            assert GgufFile(path).tensors["t.weight"].block is GGUF_TYPES[number]
        else:
            error = refusal(lambda path=path: GgufFile(path), path)  # type: ignore[misc]
            assert str(number) in str(error)
            assert "t.weight" in str(error)


NAMED = [(4, "Q4_2"), (9, "Q8_1"), (36, "I2_S"), (41, "Q1_0"), (42, "Q2_0"), (138, "IQ3_K"), (230, "ik_llama")]


@pytest.mark.parametrize(("number", "name"), NAMED)
def test_refused_types_are_named(tmp_path: Path, number: int, name: str) -> None:
    path = tensors(Tensor("t", ne=(256,), type=number)).write(tmp_path / "type.gguf")
    assert name in str(refusal(lambda: GgufFile(path), path))


def test_every_cut_of_a_file(tmp_path: Path) -> None:
    whole, path = small_file().encode(), tmp_path / "cut.gguf"
    path.write_bytes(whole)
    last = max(tensor.offset + tensor.nbytes for tensor in GgufFile(path).tensors.values())
    for length in range(last):
        path.write_bytes(whole[:length])
        assert isinstance(refusal(lambda: GgufFile(path), path), FormatError)


def sparse(path: Path, head: bytes, size: int) -> Path:
    """A file of `size` bytes, zeros after its head, that takes no room on the disk."""
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def test_bombs_in_files_that_are_really_large(tmp_path: Path) -> None:
    """Counts that the file's size allows: the walk itself must be bounded."""
    size, path = 1 << 40, tmp_path / "bomb.gguf"
    strings = File([pair("k", ARRAY, array(STRING, [], count=MAX_STRINGS + 1))])
    numbers = File([pair("k", ARRAY, array(U32, [], count=(1 << 30) + 1))])
    text = File([pair("k", STRING, string("", length=1 << 39))], [Tensor("t", ne=(1 << 50,))])
    for content in (strings, numbers, text, File(num_keys=MAX_KEYS + 1), File(num_tensors=MAX_TENSORS + 1)):
        sparse(path, content.encode(), size)
        measured_refusal(lambda: GgufFile(path), path)


def test_long_values_are_only_refused_when_read(tmp_path: Path) -> None:
    head = File([pair("k", STRING, string("", length=1 << 30))], num_keys=2).encode()[: 4 + 4 + 16 + 8 + 1 + 4 + 8]
    path = tmp_path / "long.gguf"
    tail = pair("general.architecture", STRING, "llama")
    with open(path, "wb") as file:
        file.write(head)
        file.seek(1 << 30, 1)
        file.write(tail + bytes(64))
    metadata = GgufFile(path).metadata
    assert metadata.text("general.architecture") == "llama"
    assert "at most" in str(measured_refusal(lambda: metadata.text("k"), path))


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = small_file().write(tmp_path / "shrinking.gguf")
    opened = GgufFile(path)
    path.write_bytes(path.read_bytes()[:100])
    info = opened.tensors["b.weight"]
    assert "file size" in str(refusal(lambda: opened.file.read(info.offset, info.nbytes), path))


fuzzing = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzing
@given(data=st.data())
def test_any_change_of_a_byte_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(small_file().encode())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    read_all(tmp_path / "fuzzed.gguf", bytes(raw))


@fuzzing
@given(raw=st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(tmp_path: Path, raw: bytes) -> None:
    read_all(tmp_path / "fuzzed.gguf", b"GGUF\x03\x00\x00\x00" + raw)


def read_all(path: Path, raw: bytes) -> None:
    """Opens a file and reads every value and tensor; nothing but our own errors may come out."""
    path.write_bytes(raw)
    try:
        opened = GgufFile(path)
    except ExllamaError:
        return
    for info in opened.tensors.values():
        assert len(opened.file.read(info.offset, info.nbytes)) == info.nbytes
    metadata = opened.metadata
    reads = (metadata.integer, metadata.number, metadata.boolean, metadata.text, metadata.strings, metadata.numbers)
    for key in metadata:
        for read in reads:
            try:
                read(key)
            except ExllamaError:
                continue
    opened.close()
