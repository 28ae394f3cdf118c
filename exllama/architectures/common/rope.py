"""Reads the rotary embedding of a configuration, in the spelling of transformers 4 or 5.

4: `rope_theta` and `partial_rotary_factor` beside `rope_scaling`, an object with `rope_type` (formerly `type`) or null.
5: one object `rope_parameters` that holds everything.
"""

from __future__ import annotations

from exllama.architectures.common.config import ConfigReader
from exllama.errors import UnsupportedModelError
from exllama.layers.rope import KINDS, RopeSettings

DEFAULT_THETA = 10000.0
MIN_THETA = 1.001  # at 1 all frequencies are equal, and yarn divides by its logarithm
MAX_FACTOR = 1e6

_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "low_freq_factor",
    "high_freq_factor", "short_factor", "long_factor", "factors", "finetuned",
}  # fmt: skip


def read_rope(config: ConfigReader, head_dim: int) -> RopeSettings:
    """Raises FormatError for a missing or impossible value, UnsupportedModelError for an unknown kind or key."""
    section = config.section("rope_parameters") if config.has("rope_parameters") else config.section("rope_scaling")
    kind = section.text("rope_type", section.text("type", "default"))
    unknown = section.keys() - _KEYS
    if kind not in KINDS or unknown:
        found = f"the key {sorted(unknown)[0]!r}" if unknown else repr(kind)
        message = f"{config.file}: {section.prefix}rope_type: found {found}, this version runs {', '.join(KINDS)}"
        raise UnsupportedModelError(message)
    factor = _factor(config, section, kind)
    dim = _rotary_dim(config, section, head_dim, 4 if kind == "dynamic" else 2)
    return RopeSettings(
        kind=kind,
        theta=section.number("rope_theta", config.number("rope_theta", DEFAULT_THETA, MIN_THETA), MIN_THETA),
        dim=dim,
        max_position=config.integer("max_position_embeddings"),
        original_max_position=_original(config, section),
        factor=factor,
        attention_factor=section.optional_number("attention_factor"),
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        mscale=section.optional_number("mscale"),
        mscale_all_dim=section.optional_number("mscale_all_dim"),
        truncate=section.flag("truncate", True),
        **_llama3(section, kind),
        short_factor=section.numbers("short_factor", dim // 2) if kind == "longrope" else (),
        long_factor=section.numbers("long_factor", dim // 2) if kind == "longrope" else (),
        divisors=section.numbers("factors", dim // 2) if kind == "factors" else (),
    )


def _rotary_dim(config: ConfigReader, section: ConfigReader, head_dim: int, least: int) -> int:
    share = section.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim = int(head_dim * share)
    if not least <= dim <= head_dim or dim % 2:
        expected = f"a factor that makes an even number of rotated features, {least} to {head_dim}"
        raise config.error("partial_rotary_factor", share, expected)
    return dim


def _original(config: ConfigReader, section: ConfigReader) -> int:
    """The length before scaling; beside the section (as Phi-3 has it) it takes precedence over inside."""
    key = "original_max_position_embeddings"
    if config.has(key):
        return config.integer(key, least=2)
    return section.integer(key, config.integer("max_position_embeddings"), least=2)


def _factor(config: ConfigReader, section: ConfigReader, kind: str) -> float:
    """How much longer the context became; where it may be left out, it follows from the two lengths."""
    if kind in ("default", "factors"):
        return 1.0
    if kind in ("yarn", "longrope") and not section.has("factor"):
        return config.integer("max_position_embeddings") / _original(config, section)
    return section.number("factor", least=1.0, most=MAX_FACTOR)


def _llama3(section: ConfigReader, kind: str) -> dict[str, float]:
    if kind != "llama3":
        return {}
    low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
    if low >= high:
        raise section.error("low_freq_factor", low, f"less than high_freq_factor, {high}")
    return {"low_freq_factor": low, "high_freq_factor": high}
