"""safetensors files from a header of any content. The safetensors package writes the right ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def encode(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """header: an object for JSON, or the bytes themselves; length: what the first eight bytes claim."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(path: Path, *arguments: Any, **options: Any) -> Path:
    path.write_bytes(encode(*arguments, **options))
    return path
