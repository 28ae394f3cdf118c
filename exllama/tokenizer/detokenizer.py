"""Text of a growing token sequence, a token at a time."""

from __future__ import annotations

import codecs

from exllama.tokenizer.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text without ever cutting a character.

    Bytes of an unfinished UTF-8 sequence wait for the next token. The text continues a prompt, so a leading blank
    is kept.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.control_ids if skip_special_tokens else ()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """The text that this token completes, often all of its own, sometimes nothing."""
        return "" if token_id in self._hidden else self._decoder.decode(self._tokenizer.id_to_piece(token_id))

    @property
    def unfinished(self) -> bytes:
        """The first bytes of a character whose others are still to come: all that is remembered between tokens."""
        return self._decoder.getstate()[0]

    def resume(self, unfinished: bytes) -> None:
        """Goes back to where `unfinished` was what it is."""
        self._decoder.setstate((unfinished, 0))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character. The detokenizer can then be used anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
