"""What is in a model's files: every matrix and vector with its format, its bits per weight and its size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exllama.engine.sizes import linear_sizes
from exllama.errors import UnsupportedModelError
from exllama.formats.registry import find_composite
from exllama.formats.stored import StoredTensor
from exllama.loader.progress import Progress
from exllama.loader.safetensors_file import SafetensorsFile
from exllama.loader.sources import open_checkpoint


@dataclass(frozen=True)
class Part:
    """A matrix or vector. format: its element type, or the name of a format of several tensors.

    shape: (out_features, in_features) of a linear whose model is known, else as stored. bits: per weight, None where
    a shard alone does not say how many weights there are.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    bits: float | None
    nbytes: int


def inspect(source: str | Path, progress: Progress | None = None) -> list[Part]:
    """All parts by name. source: a model, or a single .safetensors file. Raises what opening does."""
    path = Path(source)
    if path.suffix == ".safetensors" and path.is_file():
        file = SafetensorsFile(path)
        try:
            return _parts(file.tensors, {})
        finally:
            file.close()
    with open_checkpoint(source, progress) as checkpoint:
        try:
            shapes = {key: size.shape for key, size in linear_sizes(checkpoint).items()}
        except UnsupportedModelError:  # a model that does not run can be looked at all the same
            shapes = {}
        return _parts(checkpoint.tensors, shapes)


def totals(parts: list[Part]) -> dict[str, tuple[int, int]]:
    """format -> (parts, bytes), the largest first."""
    found: dict[str, tuple[int, int]] = {}
    for part in parts:
        count, nbytes = found.get(part.format, (0, 0))
        found[part.format] = (count + 1, nbytes + part.nbytes)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _parts(tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, int]]) -> list[Part]:
    made, seen = [], set()
    for name in sorted(tensors):
        key = name.rpartition(".")[0]
        composite = find_composite(tensors, key)
        names = [each for each in composite.names(key) if each in tensors] if composite else []
        if composite is None or name not in names:
            tensor = tensors[name]
            made.append(_part(name, tensor.type, tensor.shape, tensor.nbytes))
        elif key not in seen:
            seen.add(key)
            marker = tensors[f"{key}.{composite.marker}"]
            nbytes = sum(tensors[each].nbytes for each in names)
            shape = shapes.get(key)
            bits = 8 * nbytes / math.prod(shape) if shape else None
            made.append(Part(key, composite.name, shape or marker.shape, bits, nbytes))
    return made


def _part(name: str, kind: str, shape: tuple[int, ...], nbytes: int) -> Part:
    count = math.prod(shape)
    return Part(name, kind, shape, 8 * nbytes / count if count else None, nbytes)
