"""What llama.cpp makes of the corpus, kept as golden files.

`python -m tests.tokenizer.golden [GGUF]` writes them anew; it needs llama-cpp-python (of the extra [peers]) and, for
the part of the default model, its file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tokenizer.corpus import SPECIAL, TEXTS, byte_level_vocabulary, sentencepiece_vocabulary
from tests.tokenizer.vocab_files import write_byte_level, write_sentencepiece

FOLDER = Path(__file__).parent / "golden"
# One name of every family in exllama/tokenizer/pretokenizers.py.
REPRESENTATIVES = (
    "bailingmoe", "bloom", "dbrx", "deepseek-coder", "deepseek-r1-qwen", "deepseek-v3", "default", "falcon", "gpt-2",
    "gpt-4o", "jais-2", "kimi-k2", "laguna", "llama-bpe", "minicpm5", "qwen2", "qwen35", "seed-coder", "smollm",
    "spark2_5", "tekken", "tiny_aya", "ufakzeka", "viking", "youtu",
)  # fmt: skip


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return content


def save(name: str, content: dict[str, Any]) -> None:
    FOLDER.mkdir(exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in content.items()]
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def llama_cpp_ids(path: Path) -> list[list[int]]:
    """Ids of every text of the corpus with special tokens added, as text; then of SPECIAL, parsed."""
    from llama_cpp import Llama

    model = Llama(str(path), vocab_only=True, verbose=False)
    plain = [model.tokenize(text.encode(), add_bos=True, special=False) for text in TEXTS]
    return plain + [model.tokenize(text.encode(), add_bos=True, special=True) for text in SPECIAL]


def regenerate(default_model: str | None) -> None:
    tokens, merges = byte_level_vocabulary()
    pieces, scores = sentencepiece_vocabulary()
    writers: dict[str, Callable[[Path], Path]] = {
        name: lambda path, name=name: write_byte_level(path, tokens, merges, name)
        for name in REPRESENTATIVES  # type: ignore[misc]
    }
    with tempfile.TemporaryDirectory() as folder:
        ids = {name: llama_cpp_ids(write(Path(folder) / f"{name}.gguf")) for name, write in writers.items()}
        save("byte_level", {"tokens": tokens, "merges": merges, **ids})
        variants = {"prefix": None, "no_prefix": False}
        ids = {
            name: llama_cpp_ids(write_sentencepiece(Path(folder) / f"{name}.gguf", pieces, scores, prefix))
            for name, prefix in variants.items()
        }
        save("sentencepiece", {"tokens": pieces, "scores": scores, **ids})
    if default_model:
        save("default_model", {"ids": llama_cpp_ids(Path(default_model))})


if __name__ == "__main__":
    regenerate(*sys.argv[1:] or [None])
