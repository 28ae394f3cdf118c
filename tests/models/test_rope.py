"""Frequencies of every scaling kind against transformers' own functions, and the reading of both spellings."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.rope import read_rope
from exllama.errors import FormatError, UnsupportedModelError
from exllama.layers.rope import KINDS, RopeSettings, make_rope
from exllama.ops import Rope
from tests.models.toys import toy_config

HEAD_DIM, MAX_POSITION = 64, 1024
SHORT = [1.0 + 0.01 * i for i in range(HEAD_DIM // 2)]
LONG = [1.0 + 0.3 * i for i in range(HEAD_DIM // 2)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LONGROPE = {
    "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 256, "short_factor": SHORT,
    "long_factor": LONG,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
CASES: list[tuple[dict[str, Any], int]] = [
    ({"rope_type": "default"}, MAX_POSITION),
    ({"rope_type": "linear", "factor": 3.0}, MAX_POSITION),
    ({"rope_type": "dynamic", "factor": 2.0}, MAX_POSITION // 2),
    ({"rope_type": "dynamic", "factor": 2.0}, 3 * MAX_POSITION),
    (YARN, MAX_POSITION),
    (YARN | {"beta_fast": 16.0, "beta_slow": 2.0}, MAX_POSITION),
    (YARN | {"truncate": False}, MAX_POSITION),
    (YARN | {"attention_factor": 1.3}, MAX_POSITION),
    (YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}, MAX_POSITION),
    (YARN | {"factor": 1.0}, MAX_POSITION),
    (YARN | {"original_max_position_embeddings": 4, "beta_slow": 0.5}, MAX_POSITION),
    (LONGROPE, 256),
    (LONGROPE, 257),
    (LONGROPE | {"attention_factor": 1.1}, MAX_POSITION),
    (LLAMA3, MAX_POSITION),
    (LLAMA3 | {"factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 16.0}, MAX_POSITION),
]


def hf_config(parameters: dict[str, Any], theta: float = 50000.0) -> PretrainedConfig:
    shape = {"head_dim": HEAD_DIM, "max_position_embeddings": MAX_POSITION}
    return toy_config("llama", rope_parameters={"rope_theta": theta, **parameters}, **shape)


def transformers_rope(config: PretrainedConfig, length: int) -> tuple[torch.Tensor, float]:
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        return GlmRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)


def ours(values: dict[str, Any], context: int = MAX_POSITION) -> Rope:
    return make_rope(read_rope(ConfigReader("config.json", values), HEAD_DIM), context)


def old_spelling(values: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 writes it."""
    parameters = dict(values.pop("rope_parameters"))
    values["rope_theta"] = parameters.pop("rope_theta")
    share = parameters.pop("partial_rotary_factor", None)
    values |= {} if share is None else {"partial_rotary_factor": share}
    values["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    return values


def test_the_cases_cover_every_kind() -> None:
    assert {case["rope_type"] for case, _ in CASES} | {"factors"} == set(KINDS)


@pytest.mark.parametrize(("parameters", "context"), CASES)
@pytest.mark.parametrize("share", [None, 0.5])
def test_frequencies_equal_transformers(parameters: dict[str, Any], context: int, share: float | None) -> None:
    if share:
        halves = {k: parameters[k][: HEAD_DIM // 4] for k in ("short_factor", "long_factor") if k in parameters}
        parameters = {**parameters, **halves, "partial_rotary_factor": share}
    config = hf_config(parameters)
    inv_freq, scale = transformers_rope(config, context)
    for values in (json.loads(config.to_json_string()), old_spelling(json.loads(config.to_json_string()))):
        found = ours(values, context)
        assert torch.equal(found.inv_freq, inv_freq)
        assert found.scale == pytest.approx(scale, rel=1e-12)


def test_factor_may_be_left_out_where_lengths_say_it() -> None:
    base = {"max_position_embeddings": MAX_POSITION, "rope_theta": 10000.0}
    for scaling in (YARN, LONGROPE):
        named = ours(base | {"rope_scaling": scaling})
        without = ours(base | {"rope_scaling": {k: v for k, v in scaling.items() if k != "factor"}})
        assert torch.equal(named.inv_freq, without.inv_freq)
        assert named.scale == without.scale != 1.0


def test_original_length_beside_the_section_wins() -> None:
    base = {"max_position_embeddings": MAX_POSITION, "rope_theta": 10000.0}
    inside = ours(base | {"rope_scaling": YARN | {"original_max_position_embeddings": 64}})
    beside = ours(base | {"rope_scaling": YARN, "original_max_position_embeddings": 64})
    assert torch.equal(inside.inv_freq, beside.inv_freq)


def test_the_former_key_type_and_the_default_theta() -> None:
    base = {"max_position_embeddings": MAX_POSITION}
    old = ours(base | {"rope_scaling": {"type": "linear", "factor": 3.0}})
    exponent = np.arange(0, HEAD_DIM, 2) / HEAD_DIM
    np.testing.assert_allclose(old.inv_freq.numpy(), 10000.0**-exponent / 3.0, rtol=1e-6)


def test_explicit_divisors_mean_what_llama3_scaling_means() -> None:
    """GGUF stores llama3 scaling as divisors; these are computed here as the converter of llama.cpp does."""
    base = {"max_position_embeddings": MAX_POSITION, "rope_theta": 50000.0}
    plain = 50000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    original = LLAMA3["original_max_position_embeddings"]
    divisors = []
    for wavelength in 2 * np.pi / plain:
        smooth = (original / wavelength - low) / (high - low)
        divisors.append(1 / ((1 - min(max(smooth, 0), 1)) / LLAMA3["factor"] + min(max(smooth, 0), 1)))
    assert len(set(divisors)) > 3
    explicit = ours(base | {"rope_scaling": {"rope_type": "factors", "factors": divisors}})
    torch.testing.assert_close(explicit.inv_freq, ours(base | {"rope_scaling": LLAMA3}).inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 10**400}}, "rope_scaling.factor"),
        ({"rope_scaling": ["linear"]}, "rope_scaling"),
        ({"rope_scaling": LONGROPE | {"long_factor": LONG[:-1]}}, "rope_scaling.long_factor"),
        ({"rope_scaling": LONGROPE | {"short_factor": [0.0, *SHORT[1:]]}}, "rope_scaling.short_factor"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "rope_scaling.low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": None}}, "rope_scaling.high_freq_factor"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "rope_scaling.truncate"),
        ({"rope_parameters": {"rope_type": "factors", "factors": []}}, "rope_parameters.factors"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"rope_theta": 1e200}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1e9}}, "rope_scaling.factor"),
        ({"rope_scaling": LONGROPE | {"original_max_position_embeddings": 1}},
         "rope_scaling.original_max_position_embeddings"),
        ({"rope_scaling": LONGROPE | {"long_factor": [1e-200, *LONG[1:]]}}, "rope_scaling.long_factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "partial_rotary_factor": 2 / HEAD_DIM},
         "partial_rotary_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ],
)  # fmt: skip
def test_impossible_values_name_file_and_key(change: dict[str, Any], field: str) -> None:
    with pytest.raises(FormatError) as caught:
        ours({"max_position_embeddings": MAX_POSITION, "rope_theta": 10000.0} | change)
    assert (caught.value.file, caught.value.field) == ("config.json", field)


@pytest.mark.parametrize("scaling", [{"rope_type": "mrope"}, {"rope_type": "default", "mrope_section": [8, 8, 16]}])
def test_unknown_kinds_and_keys_are_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"mrope.*longrope"):
        ours({"max_position_embeddings": MAX_POSITION, "rope_scaling": scaling})


def test_make_rope_refuses_a_kind_that_it_does_not_know() -> None:
    with pytest.raises(UnsupportedModelError, match="spiral"):
        make_rope(RopeSettings("spiral", 10000.0, 64, 1024, 1024), 1024)
