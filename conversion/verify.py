"""The proof of a conversion: it is loaded as anybody would load it, and compared with its source on unseen text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exllama.engine.model import Model
from exllama.evaluation import Divergence, divergence, perplexity, windows
from exllama.loader.progress import Progress

from .calibration import held_out_text

_CONTEXT = 256


@dataclass(frozen=True)
class Verification:
    """divergence: KL(source || conversion). The perplexities are of the same text, the source's in float32."""

    divergence: Divergence
    perplexity: float
    source_perplexity: float


def verify(source: str | Path, folder: Path, tokens: int, progress: Progress | None = None) -> Verification:
    """Loads both with the engine's readers on the CPU, the source with its exact values. Raises what loading does.

    tokens: about how many are compared.
    """
    with (
        Model.from_pretrained(folder, progress=progress) as made,
        Model.from_pretrained(source, expand="float32", progress=progress) as truth,
    ):
        ids = made.tokenizer.encode(held_out_text(), add_special_tokens=False)
        context = min(_CONTEXT, tokens, made.context_length)
        start = made.tokenizer.encode("")[:1]
        texts = windows(ids, context, tokens, start[0] if start else None)
        apart = divergence(made, truth, texts, progress)
        return Verification(apart, perplexity(made, texts).perplexity, perplexity(truth, texts).perplexity)
