"""The key/value section of a GGUF file: walked and checked at opening, decoded only when someone asks.

A vocabulary is 50,000 to 250,000 strings; walking their lengths takes milliseconds, decoding them is left to the
tokenizer. All arithmetic is in Python's unbounded integers and is compared with the file's size before a read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exllama.errors import FormatError
from exllama.loader.files import PositionalFile

WINDOW = 1 << 20  # bytes read at a time while walking
MAX_KEY = 1 << 16
MAX_TEXT = 32 << 20  # bytes of one string, or of all strings of one array, that are ever decoded
MAX_ARRAY = 1 << 30  # elements; strings are walked one by one, so all arrays of a file share a smaller budget:
MAX_STRINGS = 1 << 22

STRING, ARRAY, BOOL = 8, 9, 7
_INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
_SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "u1", 10: "u8", 11: "i8", 12: "f8"}
_DTYPES = {number: np.dtype("<" + code) for number, code in _SCALARS.items()}
_NAMES = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", 7: "bool", 8: "string",
    9: "array", 10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip

_u64 = struct.Struct("<Q").unpack_from


class Cursor:
    """Walks a file forward through a window; every step is checked against the end of the file."""

    def __init__(self, file: PositionalFile) -> None:
        self.file, self.position = file, 0
        self._window, self._base = b"", 0
        self._strings_left = MAX_STRINGS

    @property
    def remaining(self) -> int:
        return self.file.size - self.position

    def skip(self, count: int, field: str) -> int:
        """Passes over count bytes and returns where they began."""
        begin = self.position
        if count > self.remaining:
            expected = f"{count} bytes at offset {begin}"
            raise FormatError(self.file.path, field, f"{self.remaining} bytes before the end", expected)
        self.position = begin + count
        return begin

    def take(self, count: int, field: str) -> bytes:
        """The next `count` bytes, a small number."""
        begin = self.skip(count, field)
        if begin < self._base or begin + count > self._base + len(self._window):
            self._fill(begin, count, field)
        return self._window[begin - self._base : begin - self._base + count]

    def integer(self, code: str, field: str) -> int:
        layout = struct.Struct("<" + code)
        return int(layout.unpack(self.take(layout.size, field))[0])

    def text(self, field: str, limit: int) -> str:
        """A length-prefixed string that must be decoded now: a key or a tensor name."""
        length = self.integer("Q", f"length of {field}")
        if not 1 <= length <= limit:
            raise FormatError(self.file.path, f"length of {field}", length, f"1 to {limit} bytes")
        return decode(self.file, self.take(length, field), field)

    def skip_strings(self, count: int, field: str) -> None:
        """Passes over `count` length-prefixed strings."""
        self._strings_left -= count
        if self._strings_left < 0:
            expected = f"at most {MAX_STRINGS} in all arrays together"
            raise FormatError(self.file.path, field, f"{count} strings", expected)
        while count:
            self._fill(self.position, 8, field)
            window, offset = self._window, 0
            last = len(window) - 8
            while count and offset <= last:
                offset += 8 + _u64(window, offset)[0]
                count -= 1
            self.skip(offset, field)

    def _fill(self, begin: int, least: int, field: str) -> None:
        if least > self.file.size - begin:
            found = f"{self.file.size - begin} bytes before the end"
            raise FormatError(self.file.path, field, found, f"{least} bytes at offset {begin}")
        self._window = self.file.read(begin, min(max(WINDOW, least), self.file.size - begin))
        self._base = begin


@dataclass(frozen=True)
class Entry:
    """Where a value lies in its file. type is the element's for an array, and count is None for a single value."""

    type: int
    count: int | None
    begin: int
    end: int

    def __str__(self) -> str:
        return _NAMES[self.type] if self.count is None else f"array of {self.count} {_NAMES[self.type]}"


class Metadata:
    """The typed values of one file. A missing key gives None or the default, a value of another type a FormatError."""

    def __init__(self, file: PositionalFile, entries: dict[str, Entry]) -> None:
        self._file, self._entries = file, entries

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def error(self, key: str, found: object, expected: object, hint: str = "") -> FormatError:
        """The error for a value of this file that makes no sense."""
        return FormatError(self._file.path, key, found, expected, hint)

    def integer(self, key: str, default: int | None = None) -> int | None:
        """A whole number of any width."""
        entry = self._single(key, _INTEGERS, "a whole number")
        return default if entry is None else int(self._numbers(entry)[0])

    def boolean(self, key: str, default: bool | None = None) -> bool | None:
        """A bool; a byte other than 0 and 1 is refused."""
        entry = self._single(key, (BOOL,), "a bool")
        if entry is None:
            return default
        value = int(self._numbers(entry)[0])
        if value > 1:
            raise self.error(key, value, "0 or 1")
        return bool(value)

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number; a float32 gives the shortest decimal that means the same float32, as config.json has it."""
        entry = self._single(key, (6, 12, *_INTEGERS), "a number")
        if entry is None:
            return default
        value = self._numbers(entry)[0]
        if not np.isfinite(value):
            raise self.error(key, float(value), "a finite number")
        return float(str(value))

    def text(self, key: str, default: str | None = None) -> str | None:
        """A string; at most MAX_TEXT bytes of UTF-8."""
        raw = self.raw_text(key)
        return default if raw is None else decode(self._file, raw, key)

    def raw_text(self, key: str) -> bytes | None:
        """The bytes of a string, at most MAX_TEXT of them, unchecked."""
        entry = self._single(key, (STRING,), "a string")
        return None if entry is None else self._raw(key, entry)

    def strings(self, key: str, limit: int = 1 << 20) -> list[str] | None:
        """An array of at most `limit` strings."""
        entry = self._array(key, (STRING,), "an array of strings")
        if entry is None:
            return None
        if (entry.count or 0) > limit:
            raise self.error(key, str(entry), f"at most {limit}")
        raw, offset = self._raw(key, entry), 0
        texts: list[str] = []
        append = texts.append
        try:
            for _ in range(entry.count or 0):
                begin = offset + 8
                offset = begin + _u64(raw, offset)[0]
                append(raw[begin:offset].decode())
        except UnicodeDecodeError as error:
            raise self.error(f"{key}[{len(texts)}]", error.object, "UTF-8 text") from error
        return texts

    def numbers(self, key: str, whole: bool = True) -> NDArray[np.generic] | None:
        """An array of numbers in its stored type, whole ones or floating ones."""
        kinds, what = (_INTEGERS, "an array of whole numbers") if whole else ((6, 12), "an array of floats")
        entry = self._array(key, kinds, what)
        if entry is None:
            return None
        if entry.end - entry.begin > MAX_TEXT:
            raise self.error(key, str(entry), f"at most {MAX_TEXT} bytes")
        return self._numbers(entry)

    def is_array(self, key: str) -> bool:
        """Whether the key holds an array; some hyperparameters are one number or one for each layer."""
        return key in self._entries and self._entries[key].count is not None

    def _single(self, key: str, types: tuple[int, ...], expected: str) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and (entry.count is not None or entry.type not in types):
            raise self.error(key, str(entry), expected)
        return entry

    def _array(self, key: str, types: tuple[int, ...], expected: str) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and (entry.count is None or (entry.type not in types and entry.count)):
            raise self.error(key, str(entry), expected)
        return entry

    def _numbers(self, entry: Entry) -> NDArray[np.generic]:
        return np.frombuffer(self._file.read(entry.begin, entry.end - entry.begin), _DTYPES[entry.type])

    def _raw(self, key: str, entry: Entry) -> bytes:
        if entry.end - entry.begin > MAX_TEXT:
            raise self.error(key, f"{entry.end - entry.begin} bytes of text", f"at most {MAX_TEXT} bytes")
        return self._file.read(entry.begin, entry.end - entry.begin)


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """Walks `count` key/value pairs; afterwards the cursor stands at the tensor table."""
    entries: dict[str, Entry] = {}
    for index in range(count):
        key = cursor.text(f"key {index}", MAX_KEY)
        if key in entries:
            raise FormatError(cursor.file.path, f"key {index}", f"a second {key!r}", "every key once")
        entries[key] = _walk_value(cursor, key)
    return Metadata(cursor.file, entries)


def _walk_value(cursor: Cursor, key: str) -> Entry:
    kind = cursor.integer("i", f"type of {key}")
    if kind == ARRAY:
        kind, count = cursor.integer("i", f"element type of {key}"), cursor.integer("Q", f"length of {key}")
        _check_array(cursor, key, kind, count)
        begin = cursor.position
        if kind == STRING:
            cursor.skip_strings(count, key)
        else:
            cursor.skip(count * _DTYPES[kind].itemsize, key)
        return Entry(kind, count, begin, cursor.position)
    if kind == STRING:
        length = cursor.integer("Q", f"length of {key}")
        return Entry(kind, None, cursor.skip(length, key), cursor.position)
    if kind not in _DTYPES:
        raise FormatError(cursor.file.path, f"type of {key}", kind, "a GGUF value type, 0 to 12")
    return Entry(kind, None, cursor.skip(_DTYPES[kind].itemsize, key), cursor.position)


def _check_array(cursor: Cursor, key: str, kind: int, count: int) -> None:
    path = cursor.file.path
    if kind == ARRAY:
        raise FormatError(path, f"element type of {key}", "array (nested)", "numbers or strings")
    if kind not in _NAMES:
        raise FormatError(path, f"element type of {key}", kind, "a GGUF value type, 0 to 12")
    size = 8 if kind == STRING else _DTYPES[kind].itemsize
    if count > MAX_ARRAY or count * size > cursor.remaining:
        limit = min(MAX_ARRAY, cursor.remaining // size)
        raise FormatError(path, f"length of {key}", count, f"at most {limit} elements in the rest of the file")


def decode(file: PositionalFile, raw: bytes, field: str) -> str:
    """UTF-8, or a FormatError that names the field."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(file.path, field, raw[:64], "UTF-8 text") from error
