"""A recipe: which rate every linear gets, as a file that a person can write, change and hand on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exllama.errors import ConversionError, ExllamaError
from exllama.formats.bounded_json import read_object

_MAX_FILE = 16 << 20


def read_recipe(path: Path, names: Sequence[str], rates: Sequence[float]) -> dict[str, float]:
    """The rate of every linear in `names`.

    The file: {"modules": {name: rate, ...}, "default": rate}; the default holds for linears that it does not name.
    Raises ConversionError for names that the model lacks, rates that the format lacks, or linears without a rate.
    """
    try:
        content = read_object(path, _MAX_FILE)
    except (ExllamaError, OSError) as error:
        raise ConversionError(f"the recipe {path} cannot be read: {error}") from error
    modules, default = content.get("modules", {}), content.get("default")
    if not isinstance(modules, dict):
        raise ConversionError(f'{path}: "modules" is {type(modules).__name__}, expected rates by name')
    unknown = sorted(set(modules) - set(names))
    if unknown:
        raise ConversionError(f"{path} names {unknown[0]!r}, which the model does not have; it has {names[0]}, ...")
    chosen: dict[str, Any] = {name: modules.get(name, default) for name in names}
    for name, rate in chosen.items():
        if rate is None:
            raise ConversionError(f'{path} says nothing about {name}: name it, or give a "default"')
        check_rate(rate, rates, f"{path}, {name}")
    return {name: float(rate) for name, rate in chosen.items()}


def check_rate(rate: Any, rates: Sequence[float], where: str) -> None:
    """Raises ConversionError, listing the rates there are, for one that the format does not have."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate not in rates:
        offered = ", ".join(f"{each:g}" for each in rates)
        raise ConversionError(f"{where}: {rate!r} bits per weight are not offered; there are {offered}")
