"""What a conversion tells about itself: report.json for programs, report.html for people, no script and no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .compile import mean_bits
from .job import Settings
from .quantization import Linear
from .verify import Verification

_WIDTH, _HEIGHT, _MARGIN = 900, 180, 40
_STYLE = (
    "body { font: 15px/1.5 sans-serif; max-width: 960px; margin: 2em auto; color: #222 } "
    "table { border-collapse: collapse } td, th { padding: 0.15em 1em 0.15em 0; text-align: left } "
    "td.n { text-align: right; font-variant-numeric: tabular-nums }"
)


def make_report(
    settings: Settings,
    linears: list[Linear],
    head: str,
    nbytes: int,
    verification: Verification,
    costs: dict[str, float],
) -> dict[str, Any]:
    """report.json. nbytes: of all weight files. costs: seconds a stage, over all runs of the job."""
    body = [linear for linear in linears if linear.name != head]
    shown = {name: value if value is None or not hasattr(value, "parts") else str(value)
             for name, value in asdict(settings).items()}  # fmt: skip
    return {
        "settings": shown,
        "bits": {
            "body": mean_bits(body),
            "head": mean_bits([linear for linear in linears if linear.name == head]),
            "all_linears": mean_bits(linears),
        },
        "bytes": nbytes,
        "kl": asdict(verification.divergence),
        "perplexity": verification.perplexity,
        "source_perplexity": verification.source_perplexity,
        "seconds": costs,
        "linears": [asdict(linear) for linear in linears],
    }


def html_report(report: dict[str, Any]) -> str:
    """report.html."""
    linears = report["linears"]
    names = [each["name"] for each in linears]
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Conversion</title><style>{_STYLE}</style></head><body>',
        "<h1>Conversion</h1>",
        _table(_summary(report)),
        "<h2>Bits per weight</h2>",
        _bars(names, [each["bits"] for each in linears], "{:.2f} bits"),
        "<h2>Error of each output</h2><p>|(W - Q) x|² / |W x|² over the calibration rows.</p>",
        _bars(names, [each["error"] for each in linears], "{:.3g}"),
        "<h2>What the stages cost</h2>",
        _table([(stage, f"{seconds:.1f} s") for stage, seconds in report["seconds"].items()]),
        "<h2>Settings</h2>",
        _table([(name, str(value)) for name, value in report["settings"].items()]),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _summary(report: dict[str, Any]) -> list[tuple[str, str]]:
    bits, kl = report["bits"], report["kl"]
    return [
        ("bits per weight, without the head", f"{bits['body']:.3f}"),
        ("bits per weight of the head", f"{bits['head']:.3f}"),
        ("bits per weight of all linears", f"{bits['all_linears']:.3f}"),
        ("size of the weight files", f"{report['bytes'] / 1e6:.1f} MB"),
        ("mean KL divergence from the source", f"{kl['mean']:.5f} nats"),
        ("99.9 % of positions below", f"{kl['percentile_99_9']:.4f} nats"),
        ("same likeliest token", f"{100 * kl['same_top']:.2f} %"),
        ("perplexity", f"{report['perplexity']:.4f}"),
        ("perplexity of the source", f"{report['source_perplexity']:.4f}"),
    ]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [f'<tr><td>{html.escape(name)}</td><td class="n">{html.escape(value)}</td></tr>' for name, value in rows]
    return f"<table>{''.join(lines)}</table>"


def _bars(names: Sequence[str], values: Sequence[float], label: str) -> str:
    """One bar a linear, its name and value shown when pointed at."""
    top = max(values, default=0.0) or 1.0
    step = (_WIDTH - _MARGIN) / max(len(values), 1)
    bars = []
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        height = _HEIGHT * value / top
        place = f'x="{_MARGIN + index * step:.1f}" y="{_HEIGHT - height:.1f}"'
        title = f"<title>{html.escape(name)}: {label.format(value)}</title>"
        bars.append(f'<rect {place} width="{0.8 * step:.2f}" height="{height:.1f}" fill="#3a6ea5">{title}</rect>')
    axis = f'<text x="0" y="12" font-size="11">{label.format(top).split()[0]}</text>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" width="100%">{axis}{"".join(bars)}</svg>'
