"""Several models against one reference: a table of sizes and divergences, and a plot of one against the other."""

from __future__ import annotations

import argparse
import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from exllama.cli.evaluate import read_text, text_start
from exllama.cli.flags import model_options
from exllama.engine.model import Model
from exllama.engine.sizes import linear_sizes, mean_bits
from exllama.errors import UsageError
from exllama.evaluation import Divergence, divergence, perplexity, windows
from exllama.loader.progress import Progress
from exllama.loader.sources import open_checkpoint

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _EDGE = 760, 420, 70, 50, 20


@dataclass(frozen=True)
class Compared:
    """A model beside the reference. bits: stored per weight over all linears, head included."""

    model: str
    bits: float
    nbytes: int
    perplexity: float
    divergence: Divergence

    def line(self) -> dict[str, object]:
        """As a JSON object."""
        named = {"model": self.model, "bits": self.bits, "bytes": self.nbytes, "perplexity": self.perplexity}
        return named | asdict(self.divergence)


def compare(args: argparse.Namespace, progress: Progress) -> list[Compared]:
    """args: the flags of `python -m exllama.eval compare`. Raises UsageError, SourceError, and loading errors."""
    text, found = read_text(Path(args.text)), []
    options, expand = model_options(args), args.reference_weights
    with Model.from_pretrained(args.reference, **options, expand=expand, progress=progress) as reference:
        if args.context > reference.context_length:
            raise UsageError(f"--context is {args.context}, the reference has {reference.context_length}")
        used = text if args.tokens is None else text[: 64 * (args.tokens + args.context)]
        ids = reference.tokenizer.encode(used, add_special_tokens=False)
        texts = windows(ids, args.context, args.tokens, text_start(reference.tokenizer))
        for source in args.models:
            with open_checkpoint(source, progress) as checkpoint:
                sizes = linear_sizes(checkpoint)
            nbytes = sum(size.nbytes for size in sizes.values())
            with Model.from_pretrained(source, **options, progress=progress) as model:
                apart = divergence(model, reference, texts, progress)
                found.append(Compared(source, mean_bits(sizes), nbytes, perplexity(model, texts).perplexity, apart))
    return found


def table(found: Sequence[Compared]) -> str:
    """For people."""
    width = max([len(each.model) for each in found] + [5])
    lines = [f"{'model':{width}}  bits/weight  linears MB  mean KL   99.9 % KL  same top  perplexity"]
    for each in found:
        kl = each.divergence
        lines.append(
            f"{each.model:{width}}  {each.bits:11.3f}  {each.nbytes / 1e6:10.1f}  {kl.mean:8.5f}  "
            f"{kl.percentile_99_9:9.4f}  {100 * kl.same_top:6.2f} %  {each.perplexity:10.3f}"
        )
    return "\n".join(lines)


def plot(found: Sequence[Compared]) -> str:
    """Mean KL divergence (logarithmic) against bits per weight, as SVG."""
    bits = [each.bits for each in found]
    kls = [max(each.divergence.mean, 1e-9) for each in found]
    low, high = math.floor(min(bits)), math.ceil(max(bits) + 1e-9)
    bottom, top = math.floor(math.log10(min(kls))), math.ceil(math.log10(max(kls)) + 1e-9)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _EDGE) * (value - low) / max(high - low, 1)

    def y(decade: float) -> float:
        return _EDGE + (_HEIGHT - _BOTTOM - _EDGE) * (top - decade) / max(top - bottom, 1)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
             'font-size="12">', '<rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for decade in range(bottom, top + 1):
        parts.append(f'<path d="M{_LEFT} {y(decade):.1f}H{_WIDTH - _EDGE}" stroke="#ccc"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(decade) + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>')
    for value in range(low, high + 1):
        parts.append(f'<path d="M{x(value):.1f} {_EDGE}V{_HEIGHT - _BOTTOM}" stroke="#eee"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value}</text>')
    for each, size, kl in zip(found, bits, kls, strict=True):
        place = f"{x(size):.1f}", f"{y(math.log10(kl)):.1f}"
        name = html.escape(Path(each.model).name or each.model)
        parts.append(f'<circle cx="{place[0]}" cy="{place[1]}" r="4" fill="#3a6ea5"/>')
        parts.append(f'<text x="{place[0]}" y="{place[1]}" dx="7" dy="-5">{name}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">bits per weight</text>')
    parts.append(f'<text x="14" y="{_HEIGHT / 2}" transform="rotate(-90 14 {_HEIGHT / 2})" text-anchor="middle">'
                 "mean KL divergence</text></svg>")  # fmt: skip
    return "\n".join(parts) + "\n"
