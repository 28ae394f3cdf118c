"""`python -m exllama.devices [plan -m MODEL | recommend] [--json]`: what was found, what fits, what is wrong here."""

from __future__ import annotations

import argparse
import sys

from exllama.cli.console import progress_bars, run_command_line, write_json
from exllama.cli.flags import add_model_flags
from exllama.cli.placement_flags import add_plan_flags, add_recommend_flags


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    made = argparse.ArgumentParser(prog="python -m exllama.devices", description="What this machine has and what fits.")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    commands = made.add_subparsers(dest="command", metavar="plan|recommend")
    planning = commands.add_parser("plan", help="what a model would take, without loading it")
    add_model_flags(planning)
    add_plan_flags(planning)
    advice = commands.add_parser("recommend", help="which bits per weight, cache and context suit this machine")
    add_recommend_flags(advice)
    for command in (planning, advice):
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 when something is wrong with the machine or nothing fits."""
    args = parser().parse_args(arguments)
    from exllama.cli import doctor, plan, recommend
    from exllama.loader.sources import open_checkpoint

    if args.command is None:
        report = doctor.inspect()
        write_json([report], "-") if args.json else print(doctor.describe(report))
        return doctor.exit_code(report)
    with progress_bars() as progress:
        if args.command == "recommend":
            choices = recommend.recommend(args, progress)
            write_json([recommend.to_json(choices)], "-") if args.json else print(recommend.describe(choices))
            return 0 if choices else 1
        with open_checkpoint(args.model, progress) as checkpoint:
            placement = plan.plan_for(checkpoint, args)
    write_json([placement.to_json()], "-") if args.json else print(plan.describe(placement))
    return 0 if placement.fits else 1


if __name__ == "__main__":
    sys.exit(run_command_line(main))
