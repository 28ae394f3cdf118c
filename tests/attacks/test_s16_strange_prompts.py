"""Prompts that are empty, made of control tokens or of characters that no text should have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exllama.errors import UsageError
from exllama.generator import Generator
from exllama.generator.job import Job
from tests.generator.fake_model import VOCAB, make

REFUSED: dict[str, Any] = {
    "no text": "",
    "no tokens": [],
    "a negative id": [5, -1],
    "an id beyond the vocabulary": [5, VOCAB],
    "an id beyond int32": [5, 1 << 40],
    "a fraction": [5, 1.5],
    "texts": [5, "a"],
    "bytes": b"abc",
    "nothing": None,
    "a number": 5,
    "rows": np.zeros((2, 2), np.int64),
}


@pytest.mark.parametrize("name", REFUSED)
def test_s16_prompts_that_make_no_sense_are_refused(name: str) -> None:
    """S16: a typed error for the caller, and the generator goes on."""
    generator, _ = make()
    with pytest.raises(UsageError):
        generator.enqueue(Job(REFUSED[name], 5))
    assert not generator.active
    generator.check_integrity()
    assert len(generator.generate("good", 5)) == 5


@pytest.mark.parametrize("prompt", [[0], [1, 2, 0], [0] * 600, [127]])
def test_s16_control_tokens_alone_are_answered(prompt: list[int]) -> None:
    """S16: they are tokens like others."""
    generator, _ = make()
    assert len(generator.generate(prompt, 5)) == 5
    generator.check_integrity()


@pytest.mark.model
@pytest.mark.parametrize(
    "text", ["\x00", "a\x00b", "\ufffe\uffff", "\u202e\u0301" * 50, " " * 500, "\r\n\t\v", "🏳️‍🌈" * 9]
)
def test_s16_strange_characters_come_back(text: str, generator: Generator) -> None:
    """S16: encoded, decoded and answered."""
    ids = generator.tokenizer.encode(text, add_special_tokens=False)
    assert generator.tokenizer.decode(ids) == text
    generator.generate(text, 2)


@pytest.mark.model
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_s16_lone_surrogates_are_refused(text: str, generator: Generator) -> None:
    """S16: with their place, in prompts and in messages."""
    with pytest.raises(UsageError, match="lone surrogate"):
        generator.generate(text, 2)
    with pytest.raises(UsageError, match="lone surrogate"):
        generator.chat([{"role": "user", "content": text}], 2)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.from_pretrained("default", cache_tokens=1024)
