"""The flags of `python -m exllama.devices plan` and `recommend`, without importing what they need later."""

from __future__ import annotations

import argparse

from exllama.cli.flags import DEFAULT_SOURCE, SOURCE_HELP, positive

MACHINE_HELP = "for another machine: free memory as in 2x24GiB,cpu:64GiB (default: this one)"


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """What only a plan is asked."""
    group = parser.add_argument_group("placement")
    group.add_argument("--context", dest="cache_tokens", type=positive, metavar="N", help="the same as --cache-tokens")
    group.add_argument("--reserve", metavar="GB,GB", help="gigabytes to leave alone on each GPU")
    group.add_argument("--spread", action="store_true", help="use all GPUs where fewer would do")
    group.add_argument("--low-vram", action="store_true", help="small prefill steps, which need less workspace")
    group.add_argument("--machine", metavar="SIZES", help=MACHINE_HELP)


def add_recommend_flags(parser: argparse.ArgumentParser) -> None:
    """A model, or no more than its number of weights."""
    parser.add_argument("-m", "--model", metavar="SOURCE", default=DEFAULT_SOURCE, help=SOURCE_HELP)
    parser.add_argument("--parameters", metavar="N", help="instead of a model: its number of weights, as in 8B")
    parser.add_argument("--machine", metavar="SIZES", help=MACHINE_HELP)
    parser.add_argument(
        "--bandwidth", metavar="GB,GB", help="10^9 bytes a second that each GPU reads, then the CPU, to predict speed"
    )
