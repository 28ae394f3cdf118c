"""The tokenizer as the files of a Hugging Face folder: copied, or written from what a GGUF file says."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import decoders, processors

from exllama.loader.checkpoint import Checkpoint

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Name -> content. Raises what Checkpoint.load_tokenizer does."""
    if checkpoint.path.is_dir():
        return {name: (checkpoint.path / name).read_bytes() for name in COPIED if (checkpoint.path / name).is_file()}
    return _rebuilt(checkpoint)


def _rebuilt(checkpoint: Checkpoint) -> dict[str, bytes]:
    tokenizer = checkpoint.load_tokenizer()
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_json())
    names = dict(tokenizer.template_names)
    if backend.decoder is None:
        backend.decoder = _decoder(tokenizer.style, tokenizer.strips_leading_blank)
    prefix = tokenizer.encode("")
    if prefix and backend.post_processor is None:
        backend.post_processor = _before(backend, prefix)
    settings: dict[str, Any] = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bool(prefix)}
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template.source
    made = {"tokenizer.json": backend.to_str(pretty=False).encode(), "tokenizer_config.json": _json(settings)}
    if tokenizer.eos_ids:
        made["generation_config.json"] = _json({"eos_token_id": list(tokenizer.eos_ids)})
    return made


def _decoder(style: str, strips: bool) -> Any:
    """What turns tokens into text, which GGUF files leave to the reader."""
    if style == "byte_level":
        return decoders.ByteLevel()
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strips else [])])


def _before(backend: tokenizers.Tokenizer, prefix: list[int]) -> Any:
    """Puts the tokens of `prefix` before every text."""
    pairs = [(str(backend.id_to_token(index)), index) for index in prefix]
    words = [token for token, _ in pairs]
    return processors.TemplateProcessing(single=[*words, "$A"], pair=[*words, "$A", "$B"], special_tokens=pairs)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def architecture_names(model_type: str) -> list[str]:
    """`architectures` of config.json, for sources that do not say."""
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    return [f"{names[model_type]}ForCausalLM"] if model_type in names else []
