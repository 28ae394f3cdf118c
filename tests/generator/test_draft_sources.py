"""The `draft` argument of from_pretrained: every kind of it, on checkpoints on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from exllama import Generator, Job, Sampling, UsageError
from tests.generator.drafters import always
from tests.generator.test_from_pretrained import CHAT
from tests.models.toys import save, toy_config, toy_model

__all__ = ["always"]
PROMPT = "one two three one two three one two"
SAMPLED = Sampling(temperature=0.7, seed=3)


def with_tokenizer(folder: Path, model: PreTrainedModel, words: dict[str, int]) -> Path:
    """A checkpoint whose tokenizer knows these words and nothing else."""
    save(model, folder)
    vocab = {"<unk>": 0, **words}
    backend = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT}), encoding="utf-8")
    return folder


LETTERS = {letter: i + 1 for i, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of four blocks, the same with two, and one with another vocabulary."""
    root = tmp_path_factory.mktemp("drafts")
    large = with_tokenizer(root / "large", toy_model(toy_config("llama", num_hidden_layers=4)), LETTERS)
    small = with_tokenizer(root / "small", toy_model(toy_config("llama")), LETTERS)
    other = shutil.copytree(small, root / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab["k"], vocab["l"] = vocab["l"], vocab["k"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    longer = shutil.copytree(small, root / "longer")
    tokenizer["model"]["vocab"] = {"<unk>": 0, **LETTERS, "A": len(LETTERS) + 1}
    (longer / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return {"large": large, "small": small, "other": other, "longer": longer}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("draft", ["ngram", "skip:1", "skip:2", "large", "small"])
@pytest.mark.parametrize("cache", ["fp16", "q4"])
def test_answers_are_the_same(folders: dict[str, Path], draft: str, cache: str) -> None:
    drafted = 0
    wishes = {"cache": cache, "cache_tokens": 1024, "threads": 1, "chunk_size": 32}
    with (
        Generator.from_pretrained(folders["large"], **wishes) as plain,
        Generator.from_pretrained(folders["large"], draft=str(folders.get(draft, draft)), **wishes) as guessing,
    ):
        for sampling in (Sampling(temperature=0), SAMPLED):
            jobs = [Job(PROMPT * (1 + i), 40, sampling) for i in range(4)]
            expected = plain.generate([job.prompt for job in jobs], 40, sampling)
            for job in jobs:
                guessing.enqueue(job)
            while guessing.active:
                guessing.step()
                guessing.check_integrity()
            assert [job.text for job in jobs] == expected
            drafted += sum(job.finished.accepted_drafts + job.finished.rejected_drafts for job in jobs)
            if draft == "large" and cache == "fp16":
                assert all(job.finished.rejected_drafts == 0 for job in jobs if job.finished.reason == "length")
    assert drafted > 20


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("other", r"another vocabulary: token 11 is b'l' there and b'k' here"),
        ("longer", r"another vocabulary: 29 tokens there and 28 here, so token 28"),
        ("skip:0", "skip:0 was asked for, but of this model's 4 blocks 1 to 2 can go"),
        ("skip:3", "skip:3 was asked for"),
        ("skip:-1", "expected skip:N"),
    ],
)
def test_drafts_that_cannot_be(folders: dict[str, Path], draft: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Generator.from_pretrained(folders["large"], draft=str(folders.get(draft, draft)), cache_tokens=512)
