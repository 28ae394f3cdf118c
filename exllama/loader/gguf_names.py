"""Tensor names of GGUF files and what Hugging Face calls them, and which architectures store q and k permuted."""

from __future__ import annotations

import re

ARCHITECTURES = ("llama", "qwen2", "qwen3")

# Their converters reorder the rows of each q and k head from halves (i, i + D/2) to pairs (2i, 2i + 1). It can not be
# seen in a tensor, so it is a table.
PERMUTED = ("llama",)

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "output.bias": "lm_head.bias",
}

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Written by old converters; a table that every reader computes itself.
_IGNORED = re.compile(r"(blk\.\d+\.attn_rot_embd\.weight|rope\.freqs)")
_BLOCK_NAME = re.compile(r"blk\.(0|[1-9]\d{0,5})\.([a-z_]+)\.(weight|bias)")


def hugging_face_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; None for a name of other models."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = _BLOCK_NAME.fullmatch(name)
    if match is None or match[2] not in _BLOCK:
        return None
    return f"model.layers.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"


def is_ignored(name: str) -> bool:
    """Whether a tensor says nothing that the metadata do not say."""
    return _IGNORED.fullmatch(name) is not None
