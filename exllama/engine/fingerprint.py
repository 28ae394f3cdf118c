"""What the bytes of cached pages depend on: which weights, read how, computed by what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Protocol

from exllama import ops
from exllama.loader.checkpoint import Checkpoint


class Fingerprinted(Protocol):
    """What is used of engine.model.Model."""

    @property
    def fingerprint(self) -> str: ...


class Shaped(Protocol):
    """What is used of cache.storage.KVCache."""

    @property
    def geometry(self) -> dict[str, Any]: ...


def fingerprint(checkpoint: Checkpoint, *reading: object) -> str:
    """32 hex digits that differ for different models; reading: how the weights are read.

    Hashes the configuration, and of every tensor its name, shape, type and its first, middle and last row: training
    changes all rows, and a large model need not be read twice.
    """
    digest = blake2b(digest_size=16, person=b"exllama-model")
    digest.update(json.dumps([checkpoint.config, *map(str, reading)], sort_keys=True, default=str).encode())
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        digest.update(f"{name} {tensor.shape} {tensor.type} {tensor.nbytes};".encode())
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        for row in sorted({0, rows // 2, rows - 1}):
            digest.update(tensor.read_rows(row, row + 1).tobytes())
    return digest.hexdigest()


def pages_header(model: Fingerprinted, cache: Shaped) -> Mapping[str, Any]:
    """What a file of pages says of itself: pages are of use only where all of it is equal, bit for bit."""
    return {"numerics": ops.numerics(), "model": model.fingerprint, **cache.geometry}
