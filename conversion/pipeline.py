"""A conversion from its source to its report: calibrate, measure, allocate, quantize, compile, verify."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from exllama.engine.sizes import linears
from exllama.errors import ConversionError
from exllama.loader.progress import Progress

from .atomic import sync_folder, write_json, write_whole
from .calibration import calibration_rows
from .compile import compile_model
from .job import Job, Settings, open_job
from .measurement import Sensitivity, choose_rates, distortions, measure
from .quantization import quantize_model
from .quantizer import Quantizer
from .quantizers import make_quantizer
from .recipe import check_rate, read_recipe
from .report import html_report, make_report
from .source import HEAD, SourceModel
from .verify import verify

_SELF = 400 << 20  # bytes of Python, torch and its buffers
_MEASURED, _RECIPE, _REPORT = "measurement.json", "recipe.json", "report.json"


def convert(
    source: str | Path,
    folder: Path,
    settings: Settings,
    quantizer: Quantizer | None = None,
    *,
    resume: bool = False,
    requantize: bool = False,
    measure_only: bool = False,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Converts a model into `folder` and returns what report.json says; with measure_only what recipe.json says.

    quantizer: None for that of settings.format. resume: insist on going on with what is there; without it that is done
    when it is the same job, and a folder with another job is refused. max_memory: bytes, refused when more is needed.
    The same source and settings give the same files, however often the work was interrupted, the reports' times apart.
    Raises ConversionError, and errors of loading.
    """
    quantizer = quantizer or make_quantizer(settings.format, settings.codebook)
    check_rate(settings.head_bits, quantizer.rates, "--head-bits")
    with SourceModel(source, settings.device, settings.length, requantize, progress) as model:
        shapes = linear_shapes(model)
        _check_memory(model, settings, shapes, max_memory)
        identity = settings.identity(model.fingerprint())
        with open_job(folder, identity, resume) as job:
            run = _Run(model, quantizer, settings, job, progress)
            if job.read("done.json") is None:
                rates = run.rates(list(shapes))
                if measure_only:
                    return {"modules": rates}
                _finish(run, source, rates)
            shutil.rmtree(job.linears, ignore_errors=True)
            done: dict[str, Any] = job.read("done.json")
            return done


def linear_shapes(model: SourceModel) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear, in the order of the model."""
    found = linears(model.modules())
    return {key: (part.out_features, part.in_features) for key, part in found.items()}


class _Run:
    """What the stages share."""

    def __init__(
        self, model: SourceModel, quantizer: Quantizer, settings: Settings, job: Job, progress: Progress | None
    ) -> None:
        self.model, self.quantizer, self.settings, self.job, self.progress = model, quantizer, settings, job, progress
        self.ids = calibration_rows(
            model.tokenizer, model.config.vocab_size, settings.rows, model.context, settings.calibration, settings.seed
        ).to(model.device)

    def rates(self, names: list[str]) -> dict[str, float]:
        """Of every linear: from the user's recipe, from an earlier run, or measured and allocated now."""
        known: dict[str, float] | None = self.job.read(_RECIPE)
        if known is None:
            if self.settings.recipe is not None:
                known = read_recipe(self.settings.recipe, names, self.quantizer.rates)
            else:
                with self.stage("measure"):
                    known = self._allocate(names)
            self.job.write(_RECIPE, known)
        write_json(self.job.folder / _RECIPE, {"modules": known})
        return known

    def _allocate(self, names: list[str]) -> dict[str, float]:
        saved = self.job.read(_MEASURED) or {}
        known = {name: Sensitivity(**value) for name, value in saved.items()}

        def save(found: dict[str, Sensitivity]) -> None:
            self.job.write(_MEASURED, {name: asdict(value) for name, value in found.items()})

        count = min(self.settings.measured_rows, len(self.ids))
        spread = torch.linspace(0, len(self.ids) - 1, count).round().long()
        found = measure(self.model, self.ids[spread], known, save, self.progress)
        distortion = distortions(self.quantizer)
        table = {f"{rate:g}": value for rate, value in distortion.items()}
        measured = {name: asdict(found[name]) for name in names}
        write_json(self.job.folder / _MEASURED, {"distortion": table, "linears": measured})
        ordered = {name: found[name] for name in names}
        chosen = choose_rates(ordered, distortion, self.quantizer, self.settings.bits)
        return {name: chosen.get(name, self.settings.head_bits) for name in names}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the job's account, also when it is interrupted."""
        began = time.monotonic()
        try:
            yield
        finally:
            costs = self.job.read("costs.json") or {}
            costs[name] = costs.get(name, 0.0) + time.monotonic() - began
            self.job.write("costs.json", costs)


def _finish(run: _Run, source: str | Path, rates: dict[str, float]) -> None:
    job, settings = run.job, run.settings
    with run.stage("quantize"):
        made = quantize_model(run.model, run.quantizer, rates, run.ids, job, settings.seed, run.progress)
    with run.stage("compile"):
        compile_model(run.model, run.quantizer, made, HEAD, job, progress=run.progress)
    with run.stage("verify"):
        verification = verify(source, job.folder, settings.verified_tokens, run.progress)
    nbytes = sum(path.stat().st_size for path in job.folder.glob("*.safetensors"))
    report = make_report(settings, made, HEAD, nbytes, verification, job.read("costs.json"))
    write_json(job.folder / _REPORT, report)
    write_whole(job.folder / "report.html", html_report(report).encode())
    sync_folder(job.folder)
    job.write("done.json", report)


def _check_memory(
    model: SourceModel, settings: Settings, shapes: dict[str, tuple[int, int]], max_memory: int | None
) -> None:
    """An estimate: what the walk holds, and what the measurement does."""
    if max_memory is None:
        return
    config, tokens = model.config, model.context
    row = 4 * tokens * config.hidden_size
    largest = 4 * max(a * b for a, b in shapes.values())
    moments = 3 * 8 * max(b for _, b in shapes.values()) ** 2
    walk = settings.rows * row + 4 * largest + moments
    back = min(settings.measured_rows, settings.rows) * row * (2 * config.num_layers + 2)
    back += 3 * largest + 4 * 4 * tokens * config.vocab_size + moments
    needed = _SELF + max(walk, 0 if settings.recipe else back)
    if needed > max_memory:
        found = f"this conversion needs about {needed / 1e9:.1f} GB, and --max-memory is {max_memory / 1e9:.1f} GB"
        raise ConversionError(f"{found}: ask for fewer --rows or a smaller --length, or give --recipe")
