"""Loads what an evaluation needs and runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

from exllama.cli.flags import model_options
from exllama.engine.model import Model
from exllama.errors import SourceError, UsageError
from exllama.evaluation import Divergence, Perplexity, divergence, perplexity, windows
from exllama.loader.progress import Progress
from exllama.tokenizer.tokenizer import Tokenizer


def evaluate(args: argparse.Namespace, progress: Progress) -> Perplexity | Divergence:
    """args: the flags of `python -m exllama.eval`. Raises SourceError for the text, UsageError, and loading errors."""
    text = read_text(Path(args.text))
    wants_reference = args.measure == "kl"
    if wants_reference and not (args.reference or args.reference_weights):
        raise UsageError("kl compares two models: name one with --reference, or use --reference-weights float32")
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
        if not wants_reference:
            return perplexity(model, texts, progress)
        source = args.reference or args.model
        expand = args.reference_weights
        with Model.from_pretrained(source, **model_options(args), expand=expand, progress=progress) as reference:
            return divergence(model, reference, texts, progress)


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
