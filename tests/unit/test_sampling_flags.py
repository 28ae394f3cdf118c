"""Every field of Sampling has a flag, and a parameter of the chat."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest

from exllama.cli.chat.conversation import Conversation
from exllama.cli.sampling_flags import HELP, add_sampling_flags, given_sampling
from exllama.errors import UsageError
from exllama.generator import Sampling

CASES: list[tuple[str, Any]] = [
    ("--top-a 0.2", {"top_a": 0.2}),
    ("--top-k 7 --seed 3", {"top_k": 7, "seed": 3}),
    ("--temperature-last --dry-multiplier 0.8", {"temperature_last": True, "dry_multiplier": 0.8}),
    ("--logit-bias 5=1.5,7=-3", {"logit_bias": {5: 1.5, 7: -3.0}}),
    ("--banned-tokens 1,2 --allowed-tokens 1,9", {"banned_tokens": [1, 2], "allowed_tokens": [1, 9]}),
    (r"--dry-sequence-breakers \n,:", {"dry_sequence_breakers": ["\n", ":"]}),
    ("--mirostat-mode 2", {"mirostat_mode": 2}),
]


def parse(line: str, **defaults: float) -> Sampling:
    parser = argparse.ArgumentParser()
    add_sampling_flags(parser, defaults)
    return Sampling(**given_sampling(parser.parse_args(line.split())))


def test_every_field_has_a_flag() -> None:
    assert list(HELP) == sorted(HELP, key=list(HELP).index)
    assert set(HELP) == {field.name for field in fields(Sampling)}


@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_flags(line: str, wanted: dict[str, Any]) -> None:
    assert parse(line) == Sampling(**wanted)


def test_defaults_give_way() -> None:
    assert parse("", top_p=0.5) == Sampling(top_p=0.5)
    assert parse("--top-p 0.9", top_p=0.5) == Sampling(top_p=0.9)


@pytest.mark.parametrize("line", ["--logit-bias 5", "--banned-tokens a", "--top-k 1.5", "--logit-bias a=1"])
def test_flags_that_do_not_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(line)
    assert "invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("dry_multiplier", "0.8", 0.8),
        ("temperature_last", "true", True),
        ("logit_bias", '{"5":1.5}', ((5, 1.5),)),
        ("logit_bias", "[[5,1.5]]", ((5, 1.5),)),
        ("banned_tokens", "[3,1]", (1, 3)),
        ("allowed_tokens", "none", None),
        ("dry_sequence_breakers", '["x"]', ("x",)),
    ],
)
def test_parameters_of_the_chat(name: str, text: str, wanted: object) -> None:
    conversation = Conversation(Sampling())
    conversation.set_parameter(name, text)
    assert conversation.parameters()[name] == wanted


@pytest.mark.parametrize(("name", "text"), [("logit_bias", '{"x":1}'), ("top_a", "[1]"), ("temperature_last", "1")])
def test_wrong_parameters(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name):
        Conversation(Sampling()).set_parameter(name, text)
