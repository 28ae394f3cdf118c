"""What `python -m exllama.convert` calls: flags in, lines of text or JSON objects out."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exllama.loader.progress import Progress

from .inspection import inspect, totals
from .job import Settings
from .pipeline import convert


def run(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """args: the flags of a conversion. Returns the report, or the recipe with --measure-only."""
    settings = Settings(
        format=args.format,
        bits=args.bits,
        head_bits=args.head_bits,
        codebook=args.codebook,
        calibration=None if args.calibration is None else Path(args.calibration),
        recipe=None if args.recipe is None else Path(args.recipe),
        rows=args.rows,
        length=args.length,
        seed=args.seed,
        device=args.device,
    )
    return convert(
        args.model,
        Path(args.out),
        settings,
        resume=args.resume,
        requantize=args.requantize,
        measure_only=args.measure_only,
        max_memory=None if args.max_memory is None else int(args.max_memory * 1e9),
        progress=progress,
    )


def summary(report: dict[str, Any], folder: str) -> Iterator[str]:
    """A finished conversion in a few lines."""
    if "kl" not in report:
        yield f"measured; the rates are in {folder}/recipe.json"
        return
    bits, kl = report["bits"], report["kl"]
    yield f"{folder}: {report['bytes'] / 1e6:.1f} MB, {bits['all_linears']:.3f} bits per weight over all linears"
    yield f"without the head {bits['body']:.3f}, the head {bits['head']:.3f}"
    yield f"mean KL divergence from the source {kl['mean']:.5f}, same likeliest token {100 * kl['same_top']:.1f} %"
    yield f"perplexity {report['perplexity']:.3f}, that of the source {report['source_perplexity']:.3f}"
    yield f"more in {folder}/report.html"


def inspected(source: str, progress: Progress) -> Iterator[dict[str, Any]]:
    """A JSON object a part, then one for each format."""
    parts = inspect(source, progress)
    yield from (asdict(part) for part in parts)
    yield from ({"format": kind, "parts": count, "nbytes": nbytes} for kind, (count, nbytes) in totals(parts).items())


def listed(source: str, progress: Progress) -> Iterator[str]:
    """The same as lines for people."""
    parts = inspect(source, progress)
    width = max((len(part.name) for part in parts), default=0)
    for part in parts:
        bits = "" if part.bits is None else f"{part.bits:7.3f} bits"
        shape = " x ".join(map(str, part.shape))
        yield f"{part.name:{width}}  {part.format:8} {shape:>15} {bits:>12} {part.nbytes:>13,} bytes"
    yield ""
    for kind, (count, nbytes) in totals(parts).items():
        yield f"{kind:8} {count:6} parts {nbytes:>15,} bytes"
