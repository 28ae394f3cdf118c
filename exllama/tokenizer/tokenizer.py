"""Text to token ids and back, whatever file the vocabulary came from."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from exllama.errors import TemplateError, UnsupportedModelError, UsageError
from exllama.tokenizer.chat_template import ChatTemplate
from exllama.tokenizer.pieces import Pieces, Style

# Control tokens that end a turn or a text, by the names that model families gave them. A model often has several, and
# its metadata often name only one.
STOP_NAMES = frozenset({
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|eot|>", "<|eom|>",
    "<end_of_turn>", "<|endofturn|>", "<|end_of_turn|>", "<|return|>", "<|call|>", "</s>", "<EOT>", "_<EOT>", "<eos>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|END_OF_TURN_TOKEN|>",
})  # fmt: skip


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a meaning. prefix and suffix surround a text that is encoded with add_special_tokens."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    control: frozenset[int] = frozenset()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    template_names: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, ... as templates see them


class Tokenizer:
    """A vocabulary with its special tokens and its chat template. Safe to use from several threads."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        pieces: Pieces,
        special: SpecialTokens,
        vocab_size: int,
        chat_template: ChatTemplate | None = None,
        strip_leading_blank: bool = False,
    ) -> None:
        self._backend, self._pieces, self._special = backend, pieces, special
        self._strip_leading_blank = strip_leading_blank
        self._lock = threading.Lock()
        self.vocab_size = vocab_size
        self.chat_template = chat_template

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the model has one."""
        return self._special.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token after which the model has nothing more to say; the first is the one that its files name."""
        return self._special.eos_ids

    @property
    def control_ids(self) -> Collection[int]:
        """Tokens that text can not produce unless it is encoded with parse_special."""
        return self._special.control

    @property
    def style(self) -> Style:
        """How tokens spell bytes."""
        return self._pieces.style

    @property
    def strips_leading_blank(self) -> bool:
        """Whether decoding takes a blank from the front of a text that encoding has put there."""
        return self._strip_leading_blank

    @property
    def template_names(self) -> Mapping[str, str]:
        """bos_token, eos_token, ... as chat templates see them."""
        return self._special.template_names

    def backend_json(self) -> str:
        """The vocabulary as a tokenizer.json; of GGUF files without what they leave to this class: decoder and bos."""
        with self._lock:
            self._backend.encode_special_tokens = False
            text: str = self._backend.to_str()
        return text

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        add_special_tokens: with what the model expects around a text (usually a leading bos).
        parse_special: `<|im_end|>` and the like in the text become control tokens; otherwise they are ordinary
        characters, so that a user's text can not forge a turn.
        """
        ids = self._encode(text, parse_special)
        return [*self._special.prefix, *ids, *self._special.suffix] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD, ids without a token become nothing."""
        hidden: Collection[int] = self._special.control if skip_special_tokens else ()
        data = b"".join(self._pieces[token_id] for token_id in ids if token_id not in hidden)
        text = data.decode("utf-8", errors="replace")
        return text[1:] if self._strip_leading_blank and text.startswith(" ") else text

    def id_to_piece(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; empty for an id that has no token."""
        return self._pieces[token_id]

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its exact name in the vocabulary."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **allowed: Any
    ) -> list[int]:
        """Token ids of a conversation as the model's template puts it.

        Control tokens come from the template alone: those spelled out in a message are encoded as ordinary text.
        """
        if self.chat_template is None:
            raise TemplateError("this model has no chat template; give one, or use generate() with a plain prompt")
        names = [self._pieces[token_id].decode("utf-8", "replace") for token_id in self._special.control]
        parts = self.chat_template.render_parts(messages, names, add_generation_prompt, **allowed)
        return [token_id for part in parts for token_id in self._encode(part, parse_special=True)]

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        if not isinstance(text, str):
            raise UsageError(f"text to encode is {type(text).__name__}, expected str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"the text has a lone surrogate at character {error.start}; expected valid Unicode"
            raise UsageError(message) from error
        try:
            with self._lock:  # the switch belongs to the backend, not to the call
                self._backend.encode_special_tokens = not parse_special
                ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if is_panic(error):
                raise UnsupportedModelError(f"the model's tokenizer gave up on this text: {error}") from error
            raise
        return ids


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library stopped by a panic, which is no Exception: a pattern that backtracks too much."""
    return type(error).__name__ == "PanicException"
