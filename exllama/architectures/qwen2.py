"""Qwen 1.5 to 2.5: llama with biases on q, k and v, and optionally a sliding window in the upper layers."""

from __future__ import annotations

from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.decoder import (
    DecoderConfig,
    build_decoder,
    layer_windows,
    read_decoder,
    split_head_dim,
)

build = build_decoder


def read_config(config: ConfigReader) -> DecoderConfig:
    """See layer_windows for the sliding window."""
    config.require("attention_bias", (True,), "qwen2")
    config.require("mlp_bias", (False,), "qwen2")
    return read_decoder(config, "qwen2", layer_windows(config), head_dim=split_head_dim(config), qkv_bias=True)
