"""Calibration rows: how many, from what, the same every time, and what a bad file is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conversion.calibration import SHARES, calibration_rows, held_out_text
from conversion.source import SourceModel
from exllama.errors import ConversionError, SourceError
from exllama.tokenizer.tokenizer import Tokenizer
from tests.conversion.toys import toy
from tests.models.toys import VOCAB

TEXTS = Path(__file__).resolve().parents[2] / "conversion" / "texts"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    with SourceModel(toy(tmp_path_factory.mktemp("toy"))[0]) as model:
        return model.tokenizer


def test_rows_of_every_domain_and_of_noise(tokenizer: Tokenizer) -> None:
    rows = calibration_rows(tokenizer, VOCAB, 40, 64)
    assert rows.shape == (40, 64)
    assert rows.dtype == torch.int64
    texts = [tokenizer.decode(row.tolist()) for row in rows]
    sources = {name: (TEXTS / f"{name}.txt").read_text(encoding="utf-8") for name in SHARES if name != "chat"}
    found = {name: sum(text.strip("\ufffd") in source for text in texts) for name, source in sources.items()}
    # 38 rows of text by shares of 95, then two of noise
    assert found == {"prose": 12, "technical": 6, "code": 8, "languages": 6, "numbers": 2}
    assert sum("<|im_start|>" in text or "<|im_end|>" in text for text in texts[-6:-2]) >= 2
    assert rows[-2:].max() >= 258, "noise takes all of the vocabulary, and no text has its last tokens"
    assert rows[:-2].max() < 258


def test_the_same_every_time_and_another_seed_changes_the_noise_alone(tokenizer: Tokenizer) -> None:
    first, again, other = (calibration_rows(tokenizer, VOCAB, 40, 32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first[:38], other[:38])
    assert not torch.equal(first[38:], other[38:])


def test_a_file_takes_the_place_of_the_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("abcdefghij" * 20, encoding="utf-8")
    rows = calibration_rows(tokenizer, VOCAB, 4, 50, file)
    assert [tokenizer.decode(row.tolist()) for row in rows] == ["abcdefghij" * 5] * 4
    file.write_text("short", encoding="utf-8")
    assert tokenizer.decode(calibration_rows(tokenizer, VOCAB, 1, 12, file)[0].tolist()) == "shortshortsh"


def test_conversations_go_through_the_template_and_cannot_forge_turns(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    talk = '{"messages": [{"role": "user", "content": "hi<|im_end|>"}]}\n\n{"text": "plain"}\n'
    file.write_text(talk, encoding="utf-8")
    row = calibration_rows(tokenizer, VOCAB, 1, 40, file)[0].tolist()
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    assert row[0] == start
    assert tokenizer.decode(row).startswith("<|im_start|>user\nhi<|im_end|><|im_end|>\nplain")
    assert [row[:25].count(token) for token in (start, end)] == [1, 1]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("empty.txt", b"", ConversionError, "holds no text"),
        ("blank.txt", b" \n\n ", ConversionError, "holds no text"),
        ("latin.txt", b"caf\xe9", SourceError, "not UTF-8 at byte 3"),
        ("talk.jsonl", b'{"text": "fine"}\n{"messages": 3}', ConversionError, "line 2"),
        ("talk.jsonl", b"not json", ConversionError, "line 1"),
        ("talk.jsonl", b"\n\n", ConversionError, "holds no text"),
        ("absent.txt", None, SourceError, "cannot read"),
    ],
)
def test_bad_files(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: bytes | None, error: type[Exception], message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        calibration_rows(tokenizer, VOCAB, 2, 16, tmp_path / name)


def test_the_held_out_text_is_in_no_calibration() -> None:
    known = "\n".join(path.read_text(encoding="utf-8") for path in TEXTS.iterdir() if path.name != "heldout.txt")
    sentences = [line for line in held_out_text().splitlines() if len(line) > 60]
    assert len(sentences) > 10
    assert not [line for line in sentences if line in known]
