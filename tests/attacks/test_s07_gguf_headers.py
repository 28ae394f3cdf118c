"""Hostile GGUF files as a user meets them: through open_checkpoint. Field by field they are in tests/formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from exllama import formats
from exllama.errors import ExllamaError, FormatError
from exllama.loader.sources import open_checkpoint
from tests.formats.gguf_writer import ARRAY, STRING, U32, File, Tensor, array, llama_keys, pair
from tests.formats.limits import measured_refusal
from tests.formats.test_gguf_limits import LIMITS

EMBEDDING = Tensor("token_embd.weight", (64, 10))


@pytest.mark.parametrize("name", LIMITS)
def test_s07_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    """S07: no door leads around the checks."""
    path = LIMITS[name][0].write(tmp_path / "hostile.gguf")
    assert isinstance(measured_refusal(lambda: open_checkpoint(path), path), FormatError)


def tokens(items: list[str], **more: bytes) -> list[bytes]:
    base = {
        "model": pair("tokenizer.ggml.model", STRING, "gpt2"),
        "pre": pair("tokenizer.ggml.pre", STRING, "gpt-2"),
        "tokens": pair("tokenizer.ggml.tokens", ARRAY, array(STRING, items)),
        "merges": pair("tokenizer.ggml.merges", ARRAY, array(STRING, [])),
    }
    return [*llama_keys(), *(base | more).values()]


VOCABULARIES: dict[str, list[bytes]] = {
    "more tokens than rows": tokens(["a"] * 11),
    "no tokens": tokens([]),
    "tokens that are numbers": tokens([], tokens=pair("tokenizer.ggml.tokens", ARRAY, array(U32, [1, 2]))),
    "tokens that are no text": tokens([], tokens=pair("tokenizer.ggml.tokens", ARRAY, array(STRING, [b"\xff"]))),
    "a token of a megabyte": tokens(["a" * (1 << 20)]),
    "types of another length": tokens(["a"], types=pair("tokenizer.ggml.token_type", ARRAY, array(5, [1, 1]))),
    "types that do not exist": tokens(["a"], types=pair("tokenizer.ggml.token_type", ARRAY, array(5, [99]))),
    "merges of unknown tokens": tokens(["a"], merges=pair("tokenizer.ggml.merges", ARRAY, array(STRING, ["a b"]))),
    "merges without a blank": tokens(["a"], merges=pair("tokenizer.ggml.merges", ARRAY, array(STRING, ["aa"]))),
    "an eos beyond the table": tokens(["a"], eos=pair("tokenizer.ggml.eos_token_id", U32, 10)),
    "a bos of 2^32 - 1": tokens(["a"], bos=pair("tokenizer.ggml.bos_token_id", U32, (1 << 32) - 1)),
    "a flag without its token": tokens(["a"], flag=pair("tokenizer.ggml.add_bos_token", 7, True)),
    "a template of two megabytes": tokens(["a"], template=pair("tokenizer.chat_template", STRING, "x" * (2 << 20))),
    "a tokenizer that does not exist": tokens(["a"], model=pair("tokenizer.ggml.model", STRING, "mystery")),
    "scores of another length": tokens(["a"], model=pair("tokenizer.ggml.model", STRING, "llama")),
}  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_s07_hostile_vocabularies_are_refused(tmp_path: Path, name: str) -> None:
    """S07: what the tokenizer takes from the metadata is checked like the rest."""
    path = File(VOCABULARIES[name], [EMBEDDING], bytes(2560)).write(tmp_path / "hostile.gguf")
    with open_checkpoint(path) as checkpoint:
        assert isinstance(measured_refusal(checkpoint.load_tokenizer, path), ExllamaError)


def test_s07_shapes_that_are_not_what_the_configuration_says(tmp_path: Path) -> None:
    """S07: q rows are put into another order, so their number is checked before any is read."""
    rows = [EMBEDDING, Tensor("blk.0.attn_q.weight", (64, 7), 0, 2560)]
    path = File(llama_keys(), rows, bytes(2560 + 64 * 7 * 4)).write(tmp_path / "hostile.gguf")
    assert "4 heads of 16 rows" in str(measured_refusal(lambda: open_checkpoint(path), path))


def test_s07_a_vector_that_fills_the_memory(tmp_path: Path) -> None:
    """S07: a norm of a gigabyte is no norm."""
    path = tmp_path / "hostile.gguf"
    rows = [EMBEDDING, Tensor("output_norm.weight", (1 << 30,), 0, 2560)]
    File(llama_keys(), rows).write(path)
    with open(path, "r+b") as file:
        file.truncate(1 << 33)
    with open_checkpoint(path) as checkpoint:
        measured_refusal(lambda: formats.load_vector(checkpoint, "model.norm.weight", 1 << 30), path)
