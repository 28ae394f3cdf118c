"""`python -m exllama.devices [plan -m MODEL] [--json]`: what was found, what would go where, what is wrong here."""

from __future__ import annotations

import argparse
import sys

from exllama.cli.console import progress_bars, run_command_line, write_json
from exllama.cli.flags import add_model_flags


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    made = argparse.ArgumentParser(prog="python -m exllama.devices", description="What this machine has and what fits.")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    commands = made.add_subparsers(dest="command", metavar="plan")
    planning = commands.add_parser("plan", help="what a model would take, without loading it")
    planning.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    add_model_flags(planning)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 when something is wrong with the machine or the plan does not fit."""
    args = parser().parse_args(arguments)
    from exllama.cli import doctor, plan
    from exllama.loader.sources import open_checkpoint

    if args.command is None:
        report = doctor.inspect()
        write_json([report], "-") if args.json else print(doctor.describe(report))
        return doctor.exit_code(report)
    with progress_bars() as progress, open_checkpoint(args.model, progress) as checkpoint:
        placement = plan.plan_model(checkpoint, args.cache, args.cache_tokens)
    write_json([placement.to_json()], "-") if args.json else print(plan.describe(placement))
    return 0 if placement.fits else 1


if __name__ == "__main__":
    sys.exit(run_command_line(main))
