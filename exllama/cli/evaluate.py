"""Loads what an evaluation needs and runs it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from exllama.cache.storage import parse_kind
from exllama.cli.flags import model_options
from exllama.engine.model import Model
from exllama.errors import SourceError, UsageError
from exllama.evaluation import Divergence, Perplexity, divergence, perplexity, windows
from exllama.loader.progress import Progress
from exllama.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class WithCache:
    """A model whose logits come through a KV cache of some kind; what exllama.evaluation asks of a model."""

    model: Model
    kind: str

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.model.vocab_size

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(T,) int64 -> (T, vocab) float32."""
        return self.model.logits(token_ids, self.kind)


def evaluate(args: argparse.Namespace, progress: Progress) -> Perplexity | Divergence:
    """args: the flags of `python -m exllama.eval`. Raises SourceError for the text, UsageError, and loading errors."""
    text = read_text(Path(args.text))
    wants_reference = args.measure == "kl"
    plain = parse_kind(args.cache) == parse_kind("fp16")
    if wants_reference and plain and not (args.reference or args.reference_weights):
        another = "name one with --reference, or use --reference-weights float32, or another --cache than fp16"
        raise UsageError(f"kl compares two models: {another}")
    if not wants_reference and (args.reference or args.reference_weights):
        raise UsageError("ppl has no reference: --reference and --reference-weights belong to kl")
    with Model.from_pretrained(args.model, **model_options(args), progress=progress) as model:
        limit = min(args.context, model.context_length)
        if limit < args.context:
            raise UsageError(f"--context is {args.context}, the model has {limit}")
        # no tokenizer averages more than 64 characters of prose per token, so the rest need not be tokenized
        used = text if args.tokens is None else text[: 64 * (args.tokens + args.context)]
        ids = model.tokenizer.encode(used, add_special_tokens=False)
        texts = windows(ids, args.context, args.tokens, text_start(model.tokenizer))
        tested = WithCache(model, args.cache)
        if not wants_reference:
            return perplexity(tested, texts, progress)
        if not (args.reference or args.reference_weights):
            return divergence(tested, WithCache(model, "fp16"), texts, progress)
        source = args.reference or args.model
        expand = args.reference_weights
        with Model.from_pretrained(source, **model_options(args), expand=expand, progress=progress) as reference:
            return divergence(tested, WithCache(reference, "fp16"), texts, progress)


def text_start(tokenizer: Tokenizer) -> int | None:
    """The token that this model expects before a text, if any."""
    first = tokenizer.encode("a")[:1]
    return tokenizer.bos_id if first == [tokenizer.bos_id] else None


def read_text(path: Path) -> str:
    """The file, which must be UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 at byte {error.start}: convert it first") from None
