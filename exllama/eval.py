"""`python -m exllama.eval ppl|kl -m MODEL --text FILE`: perplexity, and divergence from a reference model."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from exllama.cli.console import progress_bars, run_command_line, write_json
from exllama.cli.flags import add_model_flags, positive


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    made = argparse.ArgumentParser(prog="python -m exllama.eval", description="How well a model predicts a text.")
    made.add_argument("measure", choices=("ppl", "kl"), help="perplexity, or KL divergence from a reference")
    add_model_flags(made)
    add = made.add_argument_group("evaluation").add_argument
    add("--text", metavar="FILE", required=True, help="UTF-8 text to predict")
    add("--context", type=positive, default=512, metavar="N", help="tokens per window (default: 512)")
    add("--tokens", type=positive, metavar="N", help="stop after about N tokens (default: the whole text)")
    add("--reference", metavar="SOURCE", help="kl: the model to compare with, with an fp16 cache (default: -m)")
    add("--reference-weights", choices=("float32",), help="kl: expand the weights of the reference (-m unless named)")
    add("--json", metavar="FILE", default="-", help="one JSON object; - is stdout (default)")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Writes the numbers as one JSON object."""
    args = parser().parse_args(arguments)
    from exllama.cli.evaluate import evaluate

    with progress_bars() as progress:
        result = evaluate(args, progress)
    what = {"measure": args.measure, "model": args.model, "cache": args.cache, "context": args.context}
    write_json([what | asdict(result)], args.json)
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
