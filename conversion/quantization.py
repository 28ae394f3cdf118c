"""The walk that quantizes: module by module, each seeing the errors of those before it; a file for each linear."""

from __future__ import annotations

import functools
import logging
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from exllama import formats
from exllama.errors import ConversionError
from exllama.layers.module import Module
from exllama.loader.progress import Progress
from exllama.loader.safetensors_file import SafetensorsFile

from .forward import Observe, run_head, run_module
from .hessians import Hessians, Moments
from .job import Job
from .quantizer import Quantizer
from .safetensors_writer import entry_of, write_safetensors
from .source import EMBEDDING, Matrix, SourceModel

_CHUNK = 2048  # tokens that run through a module at a time
_log = logging.getLogger("exllama")


@dataclass(frozen=True)
class Linear:
    """What became of a linear.

    rate: nominal. bits: stored per weight. error: of its output, |(W - Q) x|^2 / |W x|^2 over the calibration.
    left_out: rows of its input that were not finite.
    """

    name: str
    out_features: int
    in_features: int
    rate: float
    bits: float
    error: float
    left_out: int


def quantize_model(
    source: SourceModel,
    quantizer: Quantizer,
    rates: dict[str, float],
    ids: torch.Tensor,
    job: Job,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Linear]:
    """Writes every linear that the job does not have yet, (rows, length) int64 tokens being its calibration.

    Raises ConversionError when a format's reader does not find in a file what its quantizer meant.
    """
    modules, width = source.modules(), source.config.hidden_size
    done: list[Linear] = []
    hidden = torch.empty(*ids.shape, width, device=source.device)
    modules.reverse()
    embedding = modules.pop()
    source.load(embedding)
    _forward(embedding, ids, None, hidden)
    while modules:
        module = modules.pop()
        matrices = source.load(module)
        names = [name for name in matrices if name != EMBEDDING]
        if not all(_paths(job, name)[1].is_file() for name in names):
            hessians = _observe(module, ids, hidden, last=not modules)
            for name in names:
                if not _paths(job, name)[1].is_file():
                    _quantize(quantizer, matrices[name], rates[name], hessians[name], job, seed)
                _tell(progress, name, done, names, rates)
        for name in names:
            done.append(Linear(**_record(job, name)))
            matrices[name].values = read_back(job, matrices[name]).to(source.device)
        _tell(progress, "", done, [], rates)
        if modules:
            _forward(module, ids, hidden, hidden)
    return done


def read_back(job: Job, matrix: Matrix) -> torch.Tensor:
    """(out_features, in_features) float32 as the normal reader finds it in the linear's file."""
    file = SafetensorsFile(_paths(job, matrix.key)[1])
    try:
        store = _OneFile(file)
        shape = (matrix.out_features, matrix.in_features)
        return formats.load_weight(store, matrix.key, shape, "reference", "float32").dequantize()
    finally:
        file.close()


class _OneFile:
    """A file as the formats see a checkpoint."""

    def __init__(self, file: SafetensorsFile) -> None:
        self.path, self.tensors = file.path, file.tensors
        self.config: dict[str, Any] = {}


def _forward(module: Module, ids: torch.Tensor, hidden: torch.Tensor | None, out: torch.Tensor) -> None:
    """One module over all rows, a few at a time; `out` may be `hidden`."""
    step = max(1, _CHUNK // ids.shape[1])
    with torch.no_grad():
        for begin in range(0, len(ids), step):
            rows = slice(begin, begin + step)
            before = None if hidden is None else hidden[rows]
            out[rows] = run_module(module, ids[rows], before, out.shape[-1])


def _observe(module: Module, ids: torch.Tensor, hidden: torch.Tensor, last: bool) -> Hessians:
    seen = Hessians()
    observe: Observe = seen.observe
    step = max(1, _CHUNK // ids.shape[1])
    run = functools.partial(run_head, want=False) if last else functools.partial(run_module, width=hidden.shape[-1])
    with torch.no_grad():
        for begin in range(0, len(ids), step):
            run(module, ids[begin : begin + step], hidden[begin : begin + step], observe=observe)
    return seen


def _paths(job: Job, name: str) -> tuple[Path, Path]:
    """The record of a linear, and its tensors; the record is written first."""
    return job.linears / f"{name}.json", job.linears / f"{name}.safetensors"


def _record(job: Job, name: str) -> dict[str, Any]:
    found: dict[str, Any] = job.read(f"linears/{name}.json")
    return found


def _quantize(quantizer: Quantizer, matrix: Matrix, rate: float, moments: Moments, job: Job, seed: int) -> None:
    hessian = moments.hessian()
    _warn(matrix.key, moments, hessian)
    own_seed = zlib.crc32(f"{seed} {matrix.key}".encode())
    made = quantizer.quantize(matrix.values, hessian, rate, own_seed)
    if not torch.isfinite(made.weight).all():
        raise ConversionError(f"{matrix.key}: the quantizer made values that are not finite; please report it")
    error = _relative_error(matrix.values, made.weight.to(matrix.values.device), hessian)
    size = (matrix.out_features, matrix.in_features)
    record = Linear(matrix.key, *size, rate, made.bits, error, moments.left_out)
    job.write(f"linears/{matrix.key}.json", asdict(record))
    write_safetensors(
        _paths(job, matrix.key)[1],
        [entry_of(f"{matrix.key}.{part}", array) for part, array in sorted(made.tensors.items())],
    )
    _check(job, matrix, made.weight.cpu())


def _check(job: Job, matrix: Matrix, meant: torch.Tensor) -> None:
    """The reader may round differently, by no more than the fp16 numbers that formats compute with."""
    name, read = matrix.key, read_back(job, matrix)
    difference, size = float((read - meant).abs().max()), float(meant.abs().max())
    if not difference <= 2e-3 * size:
        _paths(job, name)[1].unlink()
        found = f"the file of {name} reads differently from what was quantized, by {difference:g} of {size:g}"
        raise ConversionError(f"{found}; please report it")


def _warn(name: str, moments: Moments, hessian: torch.Tensor) -> None:
    if moments.left_out:
        share = f"{moments.left_out} of {moments.left_out + moments.rows}"
        _log.warning("%s: %s calibration rows are NaN or infinite and were left out", name, share)
    if not bool(hessian.any()):
        _log.warning("%s: its input is zero in all of the calibration, so it is rounded without", name)


def _relative_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(E H E^T) / tr(W H W^T), 0 where both vanish; without a Hessian that of the weights."""
    moments = hessian if bool(hessian.any()) else torch.eye(len(hessian), device=hessian.device)
    lost, whole = (float(((m @ moments) * m).double().sum()) for m in (weight - rounded, weight))
    return lost / whole if whole > 0 else 0.0


def _tell(progress: Progress | None, name: str, done: list[Linear], now: list[str], rates: dict[str, float]) -> None:
    if progress:
        progress("quantize", len(done) + (now.index(name) + 1 if name in now else 0), len(rates))
