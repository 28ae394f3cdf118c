"""Calibration rows: what the model is shown while a conversion measures which of its digits matter.

The package's own texts (texts/) mix prose, documentation, code, numbers, conversations in the model's chat template and
several languages; a user's file may take their place. Some rows are random tokens, so that directions which no text
visits are seen too. The same arguments give the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exllama.errors import ConversionError, SourceError
from exllama.tokenizer.tokenizer import Tokenizer

# Shares of the rows; languages weigh more than their size, numbers less.
SHARES = {"prose": 30, "technical": 15, "code": 20, "languages": 15, "numbers": 5, "chat": 10}
_TEXTS = Path(__file__).resolve().parent / "texts"
_RANDOM_SHARE = 0.05
_MAX_FILE = 256 << 20
_MIN_LENGTH = 8

Conversation = list[dict[str, Any]]


def calibration_rows(
    tokenizer: Tokenizer, vocab_size: int, rows: int, length: int, file: Path | None = None, seed: int = 0
) -> torch.Tensor:
    """(rows, length) int64, each row begun as the model expects a text to begin.

    file: UTF-8 text, or .jsonl with a conversation a line ({"messages": [...]} or {"text": ...}); None for the texts
    of the package. Raises ConversionError for a file without text or counts that make no sense, SourceError for one
    that can not be read.
    """
    if rows < 1 or length < _MIN_LENGTH:
        raise ConversionError(f"{rows} rows of {length} tokens were asked for, expected at least 1 of {_MIN_LENGTH}")
    streams = _own(tokenizer) if file is None else [(1, _tokens_of_file(tokenizer, file))]
    noise = int(_RANDOM_SHARE * rows)
    made: list[list[int]] = []
    for (_, stream), count in zip(streams, _split(rows - noise, [share for share, _ in streams]), strict=True):
        made += _cut(stream, count, length, _start(tokenizer))
    rng = np.random.default_rng([seed, rows, length])
    made += [_start(tokenizer) + rng.integers(0, vocab_size, length).tolist() for _ in range(noise)]
    return torch.tensor([row[:length] for row in made], dtype=torch.int64)


def held_out_text() -> str:
    """Text of the package that no calibration sees, to verify conversions with."""
    return _read("heldout.txt")


def _own(tokenizer: Tokenizer) -> list[tuple[int, list[int]]]:
    """(share, tokens) of every domain. A model without a template gets the conversations as text."""
    streams = []
    for name, share in SHARES.items():
        if name == "chat":
            tokens = [token for talk in json.loads(_read("chat.json")) for token in _talk(tokenizer, talk)]
        else:
            tokens = tokenizer.encode(_read(f"{name}.txt"), add_special_tokens=False)
        streams.append((share, tokens))
    return streams


def _read(name: str) -> str:
    return (_TEXTS / name).read_text(encoding="utf-8")


def _talk(tokenizer: Tokenizer, messages: Conversation) -> list[int]:
    if tokenizer.chat_template is None:
        text = "\n\n".join(str(message["content"]) for message in messages)
        return tokenizer.encode(text + "\n\n", add_special_tokens=False)
    return tokenizer.encode_chat(messages, add_generation_prompt=False)


def _tokens_of_file(tokenizer: Tokenizer, file: Path) -> list[int]:
    try:
        if file.stat().st_size > _MAX_FILE:
            raise ConversionError(f"{file} has more than {_MAX_FILE >> 20} MiB: a few megabytes calibrate as well")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{file} is not UTF-8 at byte {error.start}: convert it first") from None
    if file.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        tokens = [token for number, line in lines for token in _tokens_of_line(tokenizer, file, number, line)]
    else:
        tokens = tokenizer.encode(text, add_special_tokens=False)
    if not text.strip() or not tokens:
        raise ConversionError(f"{file} holds no text to calibrate with: give another, or leave out --calibration")
    return tokens


def _tokens_of_line(tokenizer: Tokenizer, file: Path, number: int, line: str) -> list[int]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return tokenizer.encode(value["text"], add_special_tokens=False)
    talk = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(talk, list) or not all(isinstance(turn, dict) and "content" in turn for turn in talk):
        expected = 'an object with "text", or with "messages" that have "role" and "content"'
        raise ConversionError(f"{file}, line {number}: expected {expected}")
    return _talk(tokenizer, talk)


def _split(rows: int, shares: Sequence[int]) -> list[int]:
    """Rows by share, as whole numbers that add up to `rows`."""
    ends = [round(rows * end / sum(shares)) for end in np.cumsum(shares).tolist()]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def _cut(stream: list[int], rows: int, length: int, start: list[int]) -> list[list[int]]:
    """Windows spread evenly over a stream, overlapping where it is too short for all of them."""
    body = length - len(start)
    while len(stream) < body:
        stream = stream + stream
    begins = np.linspace(0, len(stream) - body, rows).round().astype(int).tolist()
    return [start + stream[begin : begin + body] for begin in begins]


def _start(tokenizer: Tokenizer) -> list[int]:
    """What the model expects before a text, usually a BOS token or nothing."""
    plain, full = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    return full[: full.index(plain[0])] if plain and plain[0] in full else []
