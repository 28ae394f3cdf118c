"""From the `draft` argument of Generator.from_pretrained to a drafter."""

from __future__ import annotations

from exllama.cache.pages import PagePool
from exllama.cache.storage import KVCache
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.engine.skipping import skip_blocks
from exllama.errors import UsageError
from exllama.generator.drafting.drafter import Drafter
from exllama.generator.drafting.model import OtherModelDrafter, SkippingDrafter
from exllama.generator.drafting.ngram import NgramDrafter
from exllama.loader.progress import Progress
from exllama.tokenizer.tokenizer import Tokenizer

READ_ROWS = 256  # tokens of prompts that another model reads in one step, so that streams pause for a moment only


def make_drafter(
    draft: str | None, model: Model, runner: Runner, progress: Progress | None = None, rejection: bool = False
) -> Drafter | None:
    """draft: None, "ngram", "skip:N" with N blocks to leave out, or the source of a model of the same vocabulary.

    rejection: models keep what their guesses were drawn from (rejection.py); looking back guesses for sure.
    Raises UsageError for a draft that this model cannot have, and what Model.from_pretrained raises.
    """
    if draft is None:
        return None
    if draft == "ngram":
        return NgramDrafter()
    if draft.startswith("skip:"):
        return _skipping(draft, model, runner, rejection)
    return _other(draft, model, runner, progress, rejection)


def _skipping(draft: str, model: Model, runner: Runner, rejection: bool) -> Drafter:
    count = draft.removeprefix("skip:")
    if not count.isdecimal():
        raise UsageError(f"draft is {draft!r}, expected skip:N with the number of blocks to leave out")
    smaller, layers = skip_blocks(model, runner.cache.layers, int(count))
    small = Runner(smaller, runner.cache, runner.max_sequences, runner.max_sequences, layers)
    limit = min(model.context_length, runner.cache.num_tokens)
    return SkippingDrafter(small, limit, model.vocab_size, rejection)


def _other(draft: str, model: Model, runner: Runner, progress: Progress | None, rejection: bool) -> Drafter:
    other = Model.from_pretrained(draft, model.device, threads=model.threads, progress=progress)
    try:
        check_same_vocabulary(model.tokenizer, other.tokenizer)
        cache = KVCache(other.cache_layers, runner.cache.num_pages)
        rows = max(READ_ROWS, runner.max_sequences)
        small = Runner(other, cache, rows, runner.max_sequences)
        limit = min(model.context_length, other.context_length, cache.num_tokens)
        vocab_size = min(model.vocab_size, other.vocab_size)
        return OtherModelDrafter(small, PagePool(cache.num_pages), limit, vocab_size, other.close, rejection)
    except BaseException:
        other.close()
        raise


def check_same_vocabulary(tokenizer: Tokenizer, other: Tokenizer) -> None:
    """Raises UsageError naming the first token id that means something else in the other vocabulary."""
    sizes = tokenizer.vocab_size, other.vocab_size
    for token_id in range(min(sizes)):
        pieces = tokenizer.id_to_piece(token_id), other.id_to_piece(token_id)
        if pieces[0] != pieces[1]:
            raise UsageError(
                f"the draft model has another vocabulary: token {token_id} is {pieces[1]!r} there and {pieces[0]!r} "
                "here; take one of the same family"
            )
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the draft model has another vocabulary: {sizes[1]} tokens there and {sizes[0]} here, so token "
            f"{min(sizes)} is known to one alone; take one of the same family"
        )
