"""A flag for every field of Sampling."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from exllama.generator import Sampling

HELP = {
    "temperature": "divide logits by it; 0 is greedy",
    "min_temp": "lowest dynamic temperature",
    "max_temp": "highest dynamic temperature; above 0 it replaces --temperature",
    "temp_exponent": "how dynamic temperature grows with entropy",
    "temperature_last": "temperature comes after the filters",
    "smoothing_factor": "let logits fall off as a parabola; 0 is off",
    "smoothing_curve": "1 to 3: cubic share of that parabola",
    "top_k": "keep the K likeliest tokens; 0 is all",
    "top_p": "keep the likeliest tokens that together reach P",
    "top_a": "drop tokens below A times the square of the largest probability",
    "min_p": "drop tokens below this share of the likeliest one",
    "tfs": "tail-free: cut where the curve flattens; 1 is off",
    "typical_p": "keep the tokens of typical surprise that together reach P; 1 is off",
    "xtc_probability": "how often to exclude the top choices; 0 is never",
    "xtc_threshold": "tokens at least this probable are top choices",
    "repetition_penalty": "divide logits of tokens that occurred; 1 is none",
    "presence_penalty": "subtract from logits of tokens that occurred",
    "frequency_penalty": "subtract from logits for every occurrence",
    "repetition_range": "tokens that penalties look back at; 0 is all",
    "repetition_decay": "tokens before these over which penalties fade out",
    "dry_multiplier": "penalty on repeating sequences; 0 is off",
    "dry_base": "how that penalty grows with the length of the repetition",
    "dry_allowed_length": "repetitions shorter than this are free",
    "dry_range": "tokens that DRY looks back at; 0 is all",
    "dry_sequence_breakers": "comma-separated; no repetition reaches across these",
    "mirostat_mode": "2 is mirostat 2; 0 is off",
    "mirostat_tau": "surprise in bits that mirostat keeps to",
    "mirostat_eta": "how fast mirostat learns",
    "adaptive_target": "probability that adaptive-p keeps to; 1 is off",
    "adaptive_decay": "how long adaptive-p remembers",
    "skew": "above 0 draws less, below 0 more probable tokens",
    "logit_bias": "ID=BIAS,...: add to logits",
    "allowed_tokens": "ID,...: draw nothing else",
    "banned_tokens": "ID,...: never draw these",
    "seed": "repeat the same answers",
}


def add_sampling_flags(parser: argparse.ArgumentParser, defaults: Mapping[str, float]) -> None:
    """Flags named after the fields; what is not given is left out of `given_sampling`, unless it has a default here."""
    add = parser.add_argument_group("sampling (docs/sampling.md)").add_argument
    for field in fields(Sampling):
        flag = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            add(flag, action="store_true", default=None, help=HELP[field.name])
            continue
        shown = field.default if isinstance(field.default, (int, float)) else None
        default = defaults.get(field.name)
        text = HELP[field.name] + ("" if shown is None else f" (default: {shown if default is None else default})")
        add(flag, type=_reader(field.name, str(field.type)), metavar=_metavar(field.name), default=default, help=text)


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of Sampling."""
    values = {field.name: getattr(args, field.name) for field in fields(Sampling)}
    return {name: value for name, value in values.items() if value is not None}


def _metavar(name: str) -> str:
    lists = {"logit_bias": "ID=BIAS,..", "allowed_tokens": "ID,..", "banned_tokens": "ID,.."}
    return lists.get(name, "TEXT,.." if name == "dry_sequence_breakers" else "X")


def _reader(name: str, kind: str) -> Callable[[str], Any]:
    readers: dict[str, Callable[[str], Any]] = {
        "logit_bias": _biases, "allowed_tokens": _ids, "banned_tokens": _ids, "dry_sequence_breakers": _texts,
    }  # fmt: skip
    return readers.get(name, int if kind.startswith("int") else float)


def _ids(text: str) -> list[int]:
    """ "5,7" -> [5, 7]."""
    return [int(part) for part in text.split(",")]


def _biases(text: str) -> dict[int, float]:
    """ "5=1.5,7=-3" -> {5: 1.5, 7: -3.0}."""
    pairs = [part.split("=") for part in text.split(",")]
    return {int(token): float(bias) for token, bias in pairs}


def _texts(text: str) -> list[str]:
    """ "\\n,:" -> ["\n", ":"]."""
    return [part.replace("\\n", "\n").replace("\\t", "\t") for part in text.split(",")]
