"""GGUF files with a vocabulary whose metadata is changed anywhere: from the file to a tokenizer and a configuration."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exllama import architectures
from exllama.architectures.common.config import ConfigReader
from exllama.errors import ExllamaError
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from tests.tokenizer.vocab_files import write_byte_level, write_sentencepiece

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def open_all(path: Path) -> None:
    """Everything that loading a model does before tensors are read; nothing but our own errors may come out."""
    try:
        checkpoint = GgufCheckpoint(path)
    except ExllamaError:
        return
    try:
        reader = ConfigReader(checkpoint.path, checkpoint.config)
        architectures.find_architecture(reader).read_config(reader)
    except ExllamaError:
        pass
    try:
        tokenizer = checkpoint.load_tokenizer()
        tokenizer.decode(tokenizer.encode("ab <|im_end|> ba"))
        tokenizer.encode_chat([{"role": "user", "content": "ab"}])
    except ExllamaError:
        pass
    finally:
        checkpoint.close()


def write(kind: str, path: Path) -> Path:
    if kind == "sentencepiece":
        tokens = ["<unk>", "<s>", "</s>", *BYTES, "\u2581a", "b", "ab", "\u2581"]
        return write_sentencepiece(path, tokens, [-float(i) for i in range(len(tokens))])
    letters = ["a", "b", "\u0120", "ab", "\u0120a"]
    return write_byte_level(path, letters, [("a", "b"), ("\u0120", "a")], "llama-bpe", TEMPLATE)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_s07_an_unchanged_vocabulary_is_read(tmp_path: Path, kind: str) -> None:
    """S07: the file that the next test changes works."""
    checkpoint = GgufCheckpoint(write(kind, tmp_path / "good.gguf"))
    tokenizer = checkpoint.load_tokenizer()
    assert tokenizer.decode(tokenizer.encode("ab", add_special_tokens=False)).strip() == "ab"
    checkpoint.close()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["byte-level", "sentencepiece"]), seed=st.integers(0, 1 << 32), count=st.integers(1, 5))
def test_s07_any_change_of_metadata_is_read_or_refused(tmp_path: Path, kind: str, seed: int, count: int) -> None:
    """S07: bytes are flipped, made extreme, and moved, in the part before the tensors."""
    original = tmp_path / f"{kind}.gguf"
    if not original.exists():
        write(kind, original)
    raw, chance = bytearray(original.read_bytes()), random.Random(seed)
    header = len(raw) - 32 * 2 * 4
    for _ in range(count):
        at = chance.randrange(24, header)
        change = chance.randrange(3)
        if change == 0:
            raw[at] = chance.choice([0, 1, 2, 8, 9, 127, 128, 255, chance.randrange(256)])
        elif change == 1:
            raw[at : at + 8] = chance.choice([1 << 63, (1 << 64) - 1, 0, 1 << 31]).to_bytes(8, "little")
        else:
            source = chance.randrange(24, header - 16)
            raw[at : at + 16] = raw[source : source + 16]
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(raw)
    open_all(path)
