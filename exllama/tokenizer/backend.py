"""A tokenizer.json and what it says: the same content lies in a model folder or inside a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import tokenizers

from exllama.errors import FormatError, UnsupportedModelError
from exllama.tokenizer.patterns import PatternError, check_pattern
from exllama.tokenizer.pieces import Style
from exllama.tokenizer.tokenizer import is_panic

# field, found, expected -> the error that names the file
Error = Callable[[str, object, object], FormatError]


def _letter(char: str) -> str:
    return rf"(?:{char}|\\u{ord(char):04x})"


# "Regex": "pattern" anywhere, also with its key spelled in escapes: the only way in which a pattern enters.
_REGEX = re.compile(rf'"{"".join(map(_letter, "Regex"))}"\s*:\s*("(?:[^"\\]|\\.)*")'.encode(), re.DOTALL)


def load_backend(raw: bytes, error: Error) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json's bytes. Raises error(...) for nonsense, and unsafe patterns."""
    for match in _REGEX.finditer(raw):
        try:
            check_pattern(json.loads(match[1]))
        except PatternError as problem:
            raise error("Regex", str(problem), "a pattern as tokenizers need it") from problem
        except ValueError as problem:
            raise error("Regex", match[1][:80], "a JSON string") from problem
    try:
        backend = tokenizers.Tokenizer.from_buffer(raw)
        backend.no_truncation()
        backend.no_padding()
    except BaseException as problem:
        if isinstance(problem, Exception) or is_panic(problem):
            raise error("content", str(problem)[:200], "a tokenizer of the tokenizers library") from problem
        raise
    return backend


def decoder_of(backend: tokenizers.Tokenizer) -> str:
    """The JSON of the decoder, "" without one."""
    part: Any = backend.decoder
    return part.__getstate__().decode() if part is not None else ""


def style_of(decoder: str) -> Style:
    """How tokens spell bytes. Raises UnsupportedModelError for a decoder of another kind."""
    if '"ByteLevel"' in decoder:
        return "byte_level"
    if '"ByteFallback"' in decoder or '"Metaspace"' in decoder or "\u2581" in decoder:
        return "sentencepiece"
    found, supported = decoder[:100] or "none", "ByteLevel, ByteFallback and Metaspace"
    raise UnsupportedModelError(f"the tokenizer's decoder {found} is not supported; supported: {supported}")


def strips_blank(decoder: str) -> bool:
    """Whether the tokenizer puts a blank before a text that decoding takes away again."""
    return '"Strip"' in decoder or ('"Metaspace"' in decoder and '"prepend_scheme":"never"' not in decoder)


def count_ids(backend: tokenizers.Tokenizer) -> int:
    """One more than the largest token id; ids may have gaps."""
    return 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)


def surroundings(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text, seen on a text of one letter."""
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    return (), ()
