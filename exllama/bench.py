"""`python -m exllama.bench -m MODEL -p 512 -n 128`: tokens per second and how near the machine's limits they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

from exllama.cli.console import progress_bars, run_command_line, write_json
from exllama.cli.flags import (
    add_draft_flag,
    add_model_flags,
    model_options,
    non_negative,
    non_negative_list,
    placement_options,
    positive,
    positive_list,
)


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    made = argparse.ArgumentParser(prog="python -m exllama.bench", description="Measures prefill and decode speed.")
    add_model_flags(made)
    add_draft_flag(made)
    add = made.add_argument_group("benchmark").add_argument
    add("-p", "--prefill", type=non_negative, default=512, metavar="N", help="prompt tokens; 0 leaves the test out")
    add("-n", "--decode", type=non_negative, default=128, metavar="N", help="new tokens; 0 leaves the test out")
    add("-d", "--depth", type=non_negative_list, default=[0], metavar="N,N", help="tokens already there")
    add("-b", "--batch", type=positive_list, default=[1], metavar="N,N", help="sequences decoded together")
    add("-r", "--runs", type=positive, default=5, metavar="N", help="runs of which the median counts")
    add("--json", metavar="FILE", default="-", help="one JSON object a line; - is stdout (default)")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Measures every test and writes a line for each as soon as it is known."""
    args = parser().parse_args(arguments)
    from exllama import ops
    from exllama.cli.benchmark import Bench, tests
    from exllama.cli.benchmark_text import measure_drafts
    from exllama.engine.model import Model

    wanted = tests(args.prefill, args.decode, args.depth, args.batch)
    options = model_options(args)
    with progress_bars() as progress, Model.from_pretrained(args.model, **options, progress=progress) as model:
        bench = Bench(model, wanted, args.cache, args.threads or ops.default_threads())
        lines: Iterator[dict[str, Any]] = (bench.measure(test, args.runs, progress) for test in wanted)
        if args.draft and args.decode:
            drafts = measure_drafts(args.model, args.draft, args.decode, args.runs, placement_options(args))
            lines = chain(lines, drafts)
        write_json(lines, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
