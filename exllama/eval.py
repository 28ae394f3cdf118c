"""`python -m exllama.eval ppl|kl -m MODEL --text FILE`: perplexity, and divergence from a reference model.

`compare A B ... --reference R --text FILE` does it for several models.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from exllama.cli.console import progress_bars, run_command_line, write_json, write_text
from exllama.cli.flags import add_model_flags, positive


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    made = argparse.ArgumentParser(
        prog="python -m exllama.eval",
        description="How well a model predicts a text.",
        epilog="`python -m exllama.eval compare A B ... --reference R --text FILE` compares several models.",
    )
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


def compare_parser() -> argparse.ArgumentParser:
    """The flags of `compare`."""
    made = argparse.ArgumentParser(
        prog="python -m exllama.eval compare", description="Sizes and divergences of several models, side by side."
    )
    add = made.add_argument
    add("models", nargs="+", metavar="SOURCE", help="models of one vocabulary")
    add("--reference", metavar="SOURCE", required=True, help="the model that they are compared with")
    add("--reference-weights", choices=("float32",), help="expand the weights of the reference")
    add("--text", metavar="FILE", required=True, help="UTF-8 text to predict")
    add("--context", type=positive, default=512, metavar="N", help="tokens per window (default: 512)")
    add("--tokens", type=positive, metavar="N", help="stop after about N tokens (default: the whole text)")
    add("--device", default="auto", help="as of other commands (default: %(default)s)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: every core at hand)")
    add("--json", metavar="FILE", help="one JSON object a model; - is stdout (default: a table)")
    add("--plot", metavar="FILE", help="an SVG of divergence against bits per weight")
    made.set_defaults(gpu_split=None, gpu_layers=None)
    return made


def parsers() -> list[argparse.ArgumentParser]:
    """For the documentation."""
    return [parser(), compare_parser()]


def main(arguments: list[str] | None = None) -> int:
    """Writes the numbers as one JSON object."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["compare"]:
        return _compare(compare_parser().parse_args(words[1:]))
    args = parser().parse_args(words)
    from exllama.cli.evaluate import evaluate

    with progress_bars() as progress:
        result = evaluate(args, progress)
    what = {"measure": args.measure, "model": args.model, "cache": args.cache, "context": args.context}
    write_json([what | asdict(result)], args.json)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from exllama.cli.compare import compare, plot, table

    with progress_bars() as progress:
        found = compare(args, progress)
    if args.plot is not None:
        write_text(plot(found), args.plot)
    if args.json is not None:
        write_json((each.line() for each in found), args.json)
    else:
        print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
