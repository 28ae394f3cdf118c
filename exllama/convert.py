"""`python -m exllama.convert -m IN -o OUT --format exl3 --bits 3.5`: makes a quantized model; `inspect FILE` looks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

from exllama.cli.console import progress_bars, run_command_line, write_json
from exllama.cli.flags import DEFAULT_SOURCE, SOURCE_HELP, non_negative, positive

_ROOT = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    """The flags of a conversion."""
    made = argparse.ArgumentParser(
        prog="python -m exllama.convert",
        description="Makes a quantized model. What was interrupted goes on when the same is asked for again. "
        "`python -m exllama.convert inspect FILE` shows what a model consists of.",
    )
    add = made.add_argument_group("what").add_argument
    add("-m", "--model", metavar="SOURCE", default=DEFAULT_SOURCE, help=SOURCE_HELP)
    add("-o", "--out", metavar="FOLDER", required=True, help="the folder to make")
    add("--format", choices=("exl3", "exl2"), default="exl3", help="(default: %(default)s)")
    add("--bits", type=float, default=4.0, metavar="B", help="stored bits per weight on average (default: %(default)s)")
    add("--head-bits", type=float, default=6.0, metavar="B", help="nominal bits of the head (default: %(default)s)")
    add("--codebook", choices=("mul1", "mcg", "3inst"), help="of EXL3 (default: mul1)")
    add("--recipe", metavar="FILE", help="bits by linear, instead of measuring them (recipe.json of another folder)")
    add("--requantize", action="store_true", help="go on although the model is already quantized")
    _add_work_flags(made)
    return made


def _add_work_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("work").add_argument
    add("--calibration", metavar="FILE", help="UTF-8 text or .jsonl of conversations (default: texts of the package)")
    add("--rows", type=positive, default=128, metavar="N", help="rows of calibration (default: %(default)s)")
    add("--length", type=positive, default=512, metavar="N", help="tokens in a row (default: %(default)s)")
    add("--seed", type=non_negative, default=0, metavar="N", help="of everything random (default: %(default)s)")
    add("--device", default="cpu", help="where the model runs, as torch names it (default: %(default)s)")
    add("--max-memory", type=float, metavar="GB", help="refuse to begin when more is needed (default: no limit)")
    add("--measure-only", action="store_true", help="stop when the bits of every linear are chosen")
    add(
        "--resume", action="store_true", help="go on, and fail if there is nothing to go on with (default: if there is)"
    )


def inspect_parser() -> argparse.ArgumentParser:
    """The flags of `inspect`."""
    made = argparse.ArgumentParser(
        prog="python -m exllama.convert inspect", description="Lists tensors, formats, bits per weight and sizes."
    )
    made.add_argument("source", metavar="SOURCE", help="a model, or a single .safetensors file")
    made.add_argument("--json", metavar="FILE", help="one JSON object a line; - is stdout (default: a table)")
    return made


def parsers() -> list[argparse.ArgumentParser]:
    """For the documentation."""
    return [parser(), inspect_parser()]


def main(arguments: list[str] | None = None) -> int:
    """Prints what was made, or what there is."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["inspect"]:
        return _inspect(inspect_parser().parse_args(words[1:]))
    args = parser().parse_args(words)
    command = _conversion()
    with progress_bars() as progress:
        report = command.run(args, progress)
    for line in command.summary(report, args.out):
        print(line)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    command = _conversion()
    with progress_bars() as progress:
        if args.json is not None:
            write_json(command.inspected(args.source, progress), args.json)
            return 0
        lines = list(command.listed(args.source, progress))
    print("\n".join(lines))
    return 0


def _conversion() -> ModuleType:
    """In a checkout the package lies beside exllama/; installed, it is part of it."""
    if (_ROOT / "conversion" / "command.py").is_file():
        sys.path.append(str(_ROOT))
        from conversion import command
    else:
        from exllama.conversion import command  # type: ignore[import-not-found,no-redef]
    return command


if __name__ == "__main__":
    sys.exit(run_command_line(main))
