"""Llama 1, 2 and 3.x, and everything that calls itself so (SmolLM2, Yi, Vicuna, ...)."""

from __future__ import annotations

from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.decoder import DecoderConfig, build_decoder, read_decoder, split_head_dim

build = build_decoder


def read_config(config: ConfigReader) -> DecoderConfig:
    """Files older than grouped queries do not name num_key_value_heads: each query head has its own."""
    config.require("sliding_window", (), "llama")
    bias = config.flag("attention_bias", False)
    return read_decoder(
        config,
        "llama",
        head_dim=split_head_dim(config),
        num_kv_heads=config.integer("num_attention_heads"),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
