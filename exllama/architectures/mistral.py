"""Mistral 7B and its successors: llama without biases, with a sliding window over all layers or none."""

from __future__ import annotations

from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.decoder import (
    MAX_LAYERS,
    DecoderConfig,
    build_decoder,
    read_decoder,
    split_head_dim,
)

build = build_decoder


def read_config(config: ConfigReader) -> DecoderConfig:
    """`sliding_window` null or absent: every token sees all before it."""
    config.require("attention_bias", (False,), "mistral")
    config.require("mlp_bias", (False,), "mistral")
    num_layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    window = config.integer("sliding_window") if config.has("sliding_window") else None
    if config.has("layer_types"):
        config.texts("layer_types", num_layers, ("full_attention",) if window is None else ("sliding_attention",))
    return read_decoder(config, "mistral", (window,) * num_layers, head_dim=split_head_dim(config))
