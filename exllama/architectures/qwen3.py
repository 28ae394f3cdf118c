"""Qwen 3, dense: RMSNorm on every query and key head instead of biases."""

from __future__ import annotations

from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.decoder import DecoderConfig, build_decoder, layer_windows, read_decoder

build = build_decoder


def read_config(config: ConfigReader) -> DecoderConfig:
    """head_dim must be named: it does not follow from hidden_size."""
    config.require("mlp_bias", (False,), "qwen3")
    bias = config.flag("attention_bias", False)
    return read_decoder(config, "qwen3", layer_windows(config), qkv_bias=bias, o_bias=bias, qk_norm=True)
