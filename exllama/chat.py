"""`python -m exllama.chat [-m MODEL]`: talk to a model in a terminal, or pipe one question into it."""

from __future__ import annotations

import argparse
import sys

from exllama.cli.console import run_command_line
from exllama.cli.flags import add_draft_flag, add_model_flags, positive
from exllama.cli.sampling_flags import add_sampling_flags

DEFAULTS = {"top_p": 0.95, "repetition_penalty": 1.1}


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
    add_sampling_flags(made, DEFAULTS)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns when the user leaves or the pipe is answered."""
    args = parser().parse_args(arguments)
    from exllama.cli.chat.start import start

    return start(args)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
