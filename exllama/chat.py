"""`python -m exllama.chat [-m MODEL]`: talk to a model in a terminal, or pipe one question into it."""

from __future__ import annotations

import argparse
import sys

from exllama.cli.console import run_command_line
from exllama.cli.flags import add_draft_flag, add_model_flags, positive


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    made = argparse.ArgumentParser(
        prog="python -m exllama.chat",
        description="Talks to a model. With input from a pipe it answers that and ends. /help lists the commands.",
    )
    add_model_flags(made)
    add_draft_flag(made)
    add = made.add_argument_group("answers").add_argument
    add("--system", default="", metavar="TEXT", help="the system message")
    add("--max-new-tokens", type=positive, default=1024, metavar="N", help="longest answer (default: %(default)s)")
    add("--temperature", type=float, metavar="T", help="0 is greedy (default: 0 behind a pipe, else 0.3)")
    add("--top-k", type=int, metavar="K", help="keep the K likeliest tokens (default: all)")
    add("--top-p", type=float, default=0.95, metavar="P", help="keep the likeliest P of all (default: %(default)s)")
    add("--min-p", type=float, metavar="P", help="drop tokens below this share of the likeliest one (default: none)")
    add("--repetition-penalty", type=float, default=1.1, metavar="R", help="1 is none (default: %(default)s)")
    add("--seed", type=int, metavar="N", help="repeat the same answers (default: different ones)")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns when the user leaves or the pipe is answered."""
    args = parser().parse_args(arguments)
    from exllama.cli.chat.start import start

    return start(args)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
