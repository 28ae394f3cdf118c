"""A tokenizer.json inside GGUF metadata against transformers, which reads the same JSON from a file."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from transformers import PreTrainedTokenizerFast

from exllama.errors import FormatError
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from exllama.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.corpus import SPECIAL, TEXTS
from tests.tokenizer.test_folder_tokenizers import BACKENDS, byte_level_backend
from tests.tokenizer.vocab_files import write_embedded


def open_tokenizer(path: Path) -> Tokenizer:
    with GgufCheckpoint(path) as checkpoint:
        return checkpoint.load_tokenizer()


def embedded(folder: Path, name: str = "byte_level", pre: str | None = None, spare: int = 3) -> Tokenizer:
    """spare: rows of the embedding that no token has."""
    backend = BACKENDS[name]()
    bos, eos = backend.token_to_id("<|begin|>") or 1, backend.token_to_id("<|im_end|>")
    content = backend.to_str().encode()
    return open_tokenizer(write_embedded(folder / "m.gguf", content, backend.get_vocab_size() + spare, bos, eos, pre))


@pytest.mark.parametrize("name", BACKENDS)
def test_ids_and_texts_equal_transformers(tmp_path: Path, name: str) -> None:
    ours = embedded(tmp_path, name)
    theirs = PreTrainedTokenizerFast(tokenizer_object=BACKENDS[name](), eos_token="<|im_end|>")
    for text in [*TEXTS, *SPECIAL]:
        ids = theirs.encode(text)
        assert ours.encode(text, parse_special=True) == ids, text
        plain = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text, add_special_tokens=False) == plain, text
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=True) == expected, text


def test_special_tokens(tmp_path: Path) -> None:
    tokenizer, backend = embedded(tmp_path), byte_level_backend()
    begin, end = backend.token_to_id("<|begin|>"), backend.token_to_id("<|im_end|>")
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (begin, (end,))
    assert tokenizer.vocab_size == backend.get_vocab_size()
    assert set(tokenizer.control_ids) == {begin, end, backend.token_to_id("<|im_start|>")}
    assert tokenizer.id_to_piece(end) == b"<|im_end|>"


def test_it_goes_before_the_vocabulary_beside_it(tmp_path: Path) -> None:
    tokenizer = embedded(tmp_path, pre="mystery")
    assert (
        tokenizer.encode("Hello, world!", add_special_tokens=False)
        == byte_level_backend().encode("Hello, world!", add_special_tokens=False).ids
    )


def test_the_metadata_say_whether_a_text_begins_with_bos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bos = embedded(tmp_path)
    original = gguf.GGUFWriter.write_header_to_file

    def also_without_bos(writer: gguf.GGUFWriter, path: Path | None = None) -> None:
        writer.add_add_bos_token(False)
        original(writer, path)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", also_without_bos)
    without = embedded(tmp_path)
    assert with_bos.encode("a") == [with_bos.bos_id, *without.encode("a")]


def test_ids_that_the_model_has_no_row_for(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="rows of token_embd"):
        embedded(tmp_path, spare=-1)


def test_gaps_between_ids(tmp_path: Path) -> None:
    content = json.loads(byte_level_backend().to_str())
    size = len(content["model"]["vocab"])
    content["added_tokens"] = []
    content["post_processor"] = None
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    content["model"]["merges"] = []
    content["model"]["vocab"][last] = size + 5
    raw = json.dumps(content).encode()
    assert open_tokenizer(write_embedded(tmp_path / "a.gguf", raw, size + 6, 0, 1)).vocab_size == size + 6
    with pytest.raises(FormatError, match=f"ids up to {size + 5}"):
        open_tokenizer(write_embedded(tmp_path / "b.gguf", raw, size + 5, 0, 1))
