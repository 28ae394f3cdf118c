"""What bytes a token stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Literal

Style = Literal["byte_level", "sentencepiece"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the rest follow U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(rest)}


_ALPHABET = byte_alphabet()


class Pieces:
    """The bytes of every token, translated when first asked for.

    lookup: token text by id, None for an id without a token. literal: ids whose text stands for itself (added tokens).
    """

    def __init__(self, lookup: Callable[[int], str | None], literal: Collection[int], style: Style) -> None:
        self._lookup, self._literal, self.style = lookup, literal, style
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        piece = self._known.get(token_id)
        if piece is None:
            piece = self._known[token_id] = self._translate(token_id)
        return piece

    def _translate(self, token_id: int) -> bytes:
        text = self._lookup(token_id) if token_id >= 0 else None
        if text is None:
            return b""
        if token_id in self._literal:
            return text.encode()
        if self.style == "byte_level":
            values = [_ALPHABET.get(char) for char in text]
            return text.encode() if None in values else bytes(value for value in values if value is not None)
        match = _BYTE_TOKEN.fullmatch(text)
        return bytes([int(match[1], 16)]) if match else text.replace("\u2581", " ").encode()
