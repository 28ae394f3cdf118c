"""JSON from files that nobody vouches for: bounded before it is parsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exllama.errors import FormatError, SourceError

MAX_VALUES = 1 << 18  # commas, colons and opening brackets: each stands for at most one Python object
MAX_BYTES = 4 << 20


def parse_object(raw: bytes, path: Path, field: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in `raw`, every key once, no NaN. Raises FormatError before anything large is built."""
    if len(raw) > max_bytes:
        raise FormatError(path, field, f"{len(raw)} bytes", f"at most {max_bytes}")
    if len(raw) > MAX_BYTES and not raw.isascii():
        raise FormatError(path, field, f"{len(raw)} bytes that are not all ASCII", f"at most {MAX_BYTES} such bytes")
    values = sum(raw.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > MAX_VALUES:
        raise FormatError(path, field, f"{values} values", f"at most {MAX_VALUES}")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, field, str(error)[:200] or type(error).__name__, "a JSON object") from error
    if not isinstance(value, dict):
        raise FormatError(path, field, f"a JSON {type(value).__name__}", "a JSON object")
    return value


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        with open(path, "rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        reason = error.strerror or error
        raise SourceError(f"{path} can not be read: {reason}. Check the path and its permissions") from error
    return parse_object(raw, path, "content", max_bytes)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return result


def _refuse(name: str) -> Any:
    raise ValueError(f"the constant {name}")
