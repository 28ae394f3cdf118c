"""The flags that all command lines share, and what they mean for `from_pretrained`."""

from __future__ import annotations

import argparse
from typing import Any

from exllama.errors import UsageError

DEFAULT_SOURCE = "default"
SOURCE_HELP = (
    "a folder, a .gguf file, hf:org/name[@revision], or default: SmolLM2-135M-Instruct, fetched once "
    "(default: %(default)s)"
)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Model, cache and placement."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", metavar="SOURCE", default=DEFAULT_SOURCE, help=SOURCE_HELP)
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, a GPU as in cuda:0, hip:0, emu:0 (emulated), or reference (torch) (default: %(default)s)",
    )
    group.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: EXLLAMA_THREADS, else every core at hand)"
    )
    group.add_argument(
        "--cache", default="fp16", metavar="KIND",
        help="fp16, q8, q6, q4, or bits of keys and values as in k8v4 (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--cache-tokens", type=positive, metavar="N", help="tokens that the cache holds (default: the model's context)"
    )
    group.add_argument(
        "--cache-spill", metavar="FOLDER", help="keep the pages that the cache forgets, also for the next start"
    )
    group.add_argument("--gpu-split", metavar="GB,GB", help="gigabytes per GPU, or auto; needs a GPU backend")
    group.add_argument("--gpu-layers", type=int, metavar="N", help="layers on GPUs; needs a GPU backend")


def add_draft_flag(parser: argparse.ArgumentParser) -> None:
    """Speculation, where text is generated."""
    parser.add_argument(
        "--draft", metavar="WHAT",
        help="guess tokens, for the same answer sooner: ngram, skip:N (the model without N blocks), or a smaller model "
        "(default: no guessing)",
    )  # fmt: skip


def placement_options(args: argparse.Namespace) -> dict[str, Any]:
    """The shared flags as keyword arguments of Generator.from_pretrained. Raises UsageError."""
    options = {"device": args.device, "cache": args.cache, "threads": args.threads}
    if args.cache_tokens is not None:
        options["cache_tokens"] = args.cache_tokens
    if args.cache_spill is not None:
        options["cache_spill"] = args.cache_spill
    if args.gpu_layers is not None:
        options["gpu_layers"] = args.gpu_layers
    if args.gpu_split is not None:
        options["gpu_split"] = args.gpu_split if args.gpu_split == "auto" else gigabytes(args.gpu_split)
    return options


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The shared flags as keyword arguments of Model.from_pretrained, which has no placement yet. Raises UsageError."""
    if args.gpu_split is not None or args.gpu_layers:
        raise UsageError(
            "this command loads a model on one device: name it with --device, without --gpu-split and --gpu-layers"
        )
    return {"device": "cpu" if args.device == "auto" else args.device, "threads": args.threads}


def gigabytes(text: str) -> list[float]:
    """ "8,10.5" -> [8.0, 10.5]."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value < 1e6 for value in values):
        raise UsageError(f"--gpu-split is {text!r}, expected gigabytes such as 8,10.5, or auto")
    return values


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not 1 <= int(text) < 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def non_negative(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal() or int(text) >= 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def positive_list(text: str) -> list[int]:
    """ "1,4,16" -> [1, 4, 16]."""
    return [positive(part.strip()) for part in text.split(",")]


def non_negative_list(text: str) -> list[int]:
    """ "0,4096" -> [0, 4096]."""
    return [non_negative(part.strip()) for part in text.split(",")]
