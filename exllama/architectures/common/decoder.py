"""The usual decoder: embedding, blocks of attention and gated MLP with a norm before each, final norm and head."""

from __future__ import annotations

from dataclasses import dataclass

from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.rope import read_rope
from exllama.errors import UnsupportedModelError
from exllama.layers.attention import Attention, AttentionShape
from exllama.layers.embedding import Embedding
from exllama.layers.head import Head
from exllama.layers.linear import Linear
from exllama.layers.mlp import GatedMLP
from exllama.layers.module import Module
from exllama.layers.norm import RMSNorm
from exllama.layers.rope import RopeSettings, make_rope
from exllama.ops import Activation, Rope

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
MAX_LAYERS = 1 << 12
MAX_WIDTH = 1 << 20


@dataclass(frozen=True)
class DecoderConfig:
    """All that the four first architectures need to know; frozen, checked when read.

    windows: per layer, how many positions a token sees, None for all. qk_norm: RMSNorm per head on q and k.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: Activation
    rope: RopeSettings
    max_position: int
    tied_head: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def read_decoder(
    config: ConfigReader,
    model_type: str,
    windows: tuple[int | None, ...] | None = None,
    *,
    head_dim: int | None = None,
    num_kv_heads: int | None = None,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> DecoderConfig:
    """Reads the keys that all decoders share; what differs is passed in.

    head_dim, num_kv_heads: used where the file says nothing; None: the key must be there. windows: None for none.
    """
    hidden, heads = config.integer("hidden_size", most=MAX_WIDTH), config.integer("num_attention_heads", most=MAX_WIDTH)
    head_dim = config.integer("head_dim", head_dim, most=1024)
    kv_heads = config.integer("num_key_value_heads", num_kv_heads, most=heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads, {heads}")
    if head_dim % 16:
        raise UnsupportedModelError(f"{config.file}: head_dim is {head_dim}, this version runs multiples of 16")
    num_layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    return DecoderConfig(
        model_type=model_type,
        vocab_size=config.integer("vocab_size", most=1 << 24),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size", most=MAX_WIDTH),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", least=1e-15, most=1.0),
        activation=read_activation(config),
        rope=read_rope(config, head_dim),
        max_position=config.integer("max_position_embeddings"),
        tied_head=config.flag("tie_word_embeddings", False),
        windows=windows or (None,) * num_layers,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
    )


def read_activation(config: ConfigReader) -> Activation:
    """The activation of the gated MLP."""
    name = config.text("hidden_act", "silu")
    if name not in ACTIVATIONS:
        supported = ", ".join(ACTIVATIONS)
        raise UnsupportedModelError(f"{config.file}: hidden_act is {name!r}, this version runs {supported}")
    return ACTIVATIONS[name]


def split_head_dim(config: ConfigReader) -> int:
    """The head_dim of files that do not name it: hidden_size / num_attention_heads, which must be whole."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % heads and not config.has("head_dim"):
        raise config.error("hidden_size", hidden, f"a multiple of num_attention_heads, {heads}")
    return max(hidden // heads, 1)


def layer_windows(config: ConfigReader) -> tuple[int | None, ...]:
    """The Qwen way: if use_sliding_window, `layer_types` names the windowed layers, else all from max_window_layers."""
    num_layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    window = config.integer("sliding_window") if config.flag("use_sliding_window", False) else None
    if config.has("layer_types"):
        kinds = config.texts("layer_types", num_layers, ("full_attention", "sliding_attention"))
        if window is None and "sliding_attention" in kinds:
            raise config.error("layer_types", "sliding_attention", "full_attention while use_sliding_window is false")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = config.integer("max_window_layers", least=0) if window else num_layers
    return tuple(window if index >= first else None for index in range(num_layers))


def build_decoder(config: DecoderConfig, context: int) -> list[Module]:
    """The flat list of modules. context: the longest sequence that will be run (see layers/rope.py)."""
    embedding = Embedding("model.embed_tokens", config.vocab_size, config.hidden_size)
    rope = make_rope(config.rope, context)
    blocks = [module for index in range(config.num_layers) for module in _block(config, index, rope)]
    norm = RMSNorm("model.norm", config.hidden_size, config.norm_eps)
    head = embedding if config.tied_head else Linear("lm_head", config.hidden_size, config.vocab_size)
    return [embedding, *blocks, Head(norm, head)]


def _block(config: DecoderConfig, index: int, rope: Rope) -> list[Module]:
    key, hidden, eps = f"model.layers.{index}", config.hidden_size, config.norm_eps
    shape = AttentionShape(
        hidden_size=hidden,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        scale=config.head_dim**-0.5,
        window=config.windows[index],
        qkv_bias=config.qkv_bias,
        o_bias=config.o_bias,
    )
    before = RMSNorm(f"{key}.input_layernorm", hidden, eps)
    after = RMSNorm(f"{key}.post_attention_layernorm", hidden, eps)
    return [
        Attention(f"{key}.self_attn", before, shape, rope, eps if config.qk_norm else None),
        GatedMLP(f"{key}.mlp", after, hidden, config.intermediate_size, config.activation, config.mlp_bias),
    ]
