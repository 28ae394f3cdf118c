"""GGUF files that hold a vocabulary, written by the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def write_byte_level(
    path: Path, tokens: list[str], merges: list[tuple[str, str]], pre: str | None, template: str | None = None
) -> Path:
    """With <|im_start|> and <|im_end|> as control tokens and <think> as a token that users may write."""
    extra = ["<|im_start|>", "<|im_end|>", "<think>"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *extra])
    writer.add_token_types([NORMAL] * len(tokens) + [CONTROL, CONTROL, USER_DEFINED])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    if template is not None:
        writer.add_chat_template(template)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    return _finish(writer, path, len(tokens) + 3)


def write_sentencepiece(path: Path, tokens: list[str], scores: list[float], prefix: bool | None = None) -> Path:
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - 259)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    return _finish(writer, path, len(tokens))


def write_embedded(path: Path, content: bytes, rows: int, bos: int, eos: int, pre: str | None = None) -> Path:
    """With a whole tokenizer.json in the metadata; pre: also a vocabulary of its own, with that pre-tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_key_value("tokenizer.huggingface.json", content, gguf.GGUFValueType.STRING)
    if pre is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([f"token {index}" for index in range(rows)])
        writer.add_token_merges([])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    return _finish(writer, path, rows)


def _finish(writer: gguf.GGUFWriter, path: Path, rows: int) -> Path:
    """Such numbers and tensors as make the file a (tiny) model, which both readers open."""
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(rows)
    writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
