"""Tokenizers out of GGUF metadata against what llama.cpp makes of the same files (golden files, see golden.py)."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from exllama.errors import FormatError, UnsupportedModelError
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from exllama.tokenizer.pretokenizers import PRE_TOKENIZERS
from exllama.tokenizer.tokenizer import Tokenizer
from tests.tokenizer import golden
from tests.tokenizer.corpus import SPECIAL, TEXTS
from tests.tokenizer.vocab_files import write_byte_level, write_sentencepiece

# Where llama.cpp's regex engine differs from the models' own tokenizer.json, which is what we follow: combining marks
# of the o200k patterns, composed characters (NFC) of Qwen, and U+2003 inside a range of deepseek-coder's pattern.
_MARKS = ("हिन्दी", "decomposed")
DEVIATIONS = {
    "gpt-4o": _MARKS, "tekken": _MARKS, "qwen2": ("decomposed",), "qwen35": ("decomposed",),
    "deepseek-coder": ("\u2003",), "kimi-k2": _MARKS,
}  # fmt: skip


def open_tokenizer(path: Path) -> Tokenizer:
    with GgufCheckpoint(path) as checkpoint:
        return checkpoint.load_tokenizer()


def byte_level(tmp_path: Path, pre: str | None) -> Tokenizer:
    vocabulary = golden.load("byte_level")
    merges = [(left, right) for left, right in vocabulary["merges"]]
    return open_tokenizer(write_byte_level(tmp_path / "vocabulary.gguf", vocabulary["tokens"], merges, pre))


def sentencepiece(tmp_path: Path, prefix: bool | None) -> Tokenizer:
    vocabulary = golden.load("sentencepiece")
    path = tmp_path / "vocabulary.gguf"
    return open_tokenizer(write_sentencepiece(path, vocabulary["tokens"], vocabulary["scores"], prefix))


def differing(tokenizer: Tokenizer, expected: list[list[int]]) -> list[str]:
    """The texts that are not cut into the expected tokens."""
    plain = [tokenizer.encode(text) for text in TEXTS]
    found = plain + [tokenizer.encode(text, parse_special=True) for text in SPECIAL]
    return [text for text, ours, theirs in zip([*TEXTS, *SPECIAL], found, expected, strict=True) if ours != theirs]


@pytest.mark.parametrize("pre", golden.REPRESENTATIVES)
def test_byte_level_equals_llama_cpp(tmp_path: Path, pre: str) -> None:
    different = differing(byte_level(tmp_path, pre), golden.load("byte_level")[pre])
    known = DEVIATIONS.get(pre, ())
    assert [text for text in different if not any(part in text for part in known)] == []
    assert len(different) == len(known)


def test_every_name_belongs_to_a_family_with_golden_ids() -> None:
    families = [PRE_TOKENIZERS[name] for name in golden.REPRESENTATIVES]
    assert [name for name, kind in PRE_TOKENIZERS.items() if kind not in families] == []


@pytest.mark.parametrize(("name", "prefix"), [("prefix", None), ("no_prefix", False)])
def test_sentencepiece_equals_llama_cpp(tmp_path: Path, name: str, prefix: bool | None) -> None:
    assert differing(sentencepiece(tmp_path, prefix), golden.load("sentencepiece")[name]) == []


@pytest.mark.parametrize("pre", [name for name in golden.REPRESENTATIVES if not PRE_TOKENIZERS[name].nfc])
def test_byte_level_round_trip(tmp_path: Path, pre: str) -> None:
    tokenizer = byte_level(tmp_path, pre)
    assert [text for text in TEXTS if tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) != text] == []


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_round_trip(tmp_path: Path, prefix: bool) -> None:
    tokenizer = sentencepiece(tmp_path, prefix)
    assert [text for text in TEXTS if tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) != text] == []


def test_special_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, "smollm")
    start, end, think = tokenizer.vocab_size - 3, tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert tokenizer.bos_id == start
    assert tokenizer.eos_ids == (end,)
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [end]
    assert end not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode("<think>") == [think]  # no control token: users and models write it alike
    assert tokenizer.id_to_piece(end) == b"<|im_end|>"
    assert tokenizer.id_to_piece(10**6) == b""
    assert tokenizer.decode([end, *tokenizer.encode("a"), end], skip_special_tokens=True) == "a"


def test_a_missing_pre_tokenizer_is_the_default_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "exllama"):
        tokenizer = byte_level(tmp_path, None)
    assert "pre-tokenizer" in caplog.text
    assert differing(tokenizer, golden.load("byte_level")["default"]) == []


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mystery'.*llama-bpe.*qwen2.*huggingface\.json"):
        byte_level(tmp_path, "mystery")


def test_broken_vocabularies(tmp_path: Path) -> None:
    vocabulary = golden.load("byte_level")
    tokens, merges = vocabulary["tokens"], [(left, right) for left, right in vocabulary["merges"]]
    with pytest.raises(FormatError, match=r"merges\[2\]"):
        open_tokenizer(write_byte_level(tmp_path / "a.gguf", tokens, [*merges[:2], ("a", "no such token")], "smollm"))
    pieces = golden.load("sentencepiece")
    with pytest.raises(FormatError, match="scores"):
        open_tokenizer(write_sentencepiece(tmp_path / "b.gguf", pieces["tokens"], pieces["scores"][:-1]))
    broken = ["<broken>" if token == "<0x41>" else token for token in pieces["tokens"]]
    with pytest.raises(FormatError, match="<0x41>"):
        open_tokenizer(write_sentencepiece(tmp_path / "c.gguf", broken, pieces["scores"]))


@pytest.mark.model
def test_the_default_model(default_model: Path) -> None:
    tokenizer = open_tokenizer(default_model)
    assert differing(tokenizer, golden.load("default_model")["ids"]) == []
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (49152, 1, (2, 0))


@pytest.mark.model
def test_the_default_model_s_tokenizer_loads_fast(default_model: Path) -> None:
    """0.1 s of processor time, which a busy machine does not stretch much."""
    spent = []
    for _ in range(3):
        began = time.process_time()
        open_tokenizer(default_model)
        spent.append(time.process_time() - began)
    assert min(spent) < 0.25
