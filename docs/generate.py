"""`make docs`: writes docs/cli.md and docs/environment.md from the parsers and settings.py. A test compares them."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from exllama import settings
from exllama.cli import plan, recommend
from exllama.loader.placement import Wishes

DOCS = Path(__file__).resolve().parent
COMMANDS = ("chat", "convert", "bench", "eval", "devices")
NOTICE = "<!-- Written by docs/generate.py (make docs). -->"


def parsers_of(command: str) -> list[argparse.ArgumentParser]:
    """The parsers of `python -m exllama.COMMAND`, the usual one first."""
    module = importlib.import_module(f"exllama.{command}.__main__" if command == "devices" else f"exllama.{command}")
    made: list[argparse.ArgumentParser] = module.parsers() if hasattr(module, "parsers") else [module.parser()]
    return made


def parser_of(command: str) -> argparse.ArgumentParser:
    """The usual parser of `python -m exllama.COMMAND`."""
    return parsers_of(command)[0]


def cli_page() -> str:
    """All command lines, a table of flags each."""
    lines = ["# Command lines", "", NOTICE, ""]
    lines += ["Results go to stdout, messages and progress to stderr. Exit codes: 0 done, 1 failed (one sentence says"]
    lines += ["why), 2 wrong flags, 130 stopped by Ctrl+C.", ""]
    for command in COMMANDS:
        for made in parsers_of(command):
            lines += parser_section(made)
    return "\n".join(lines).rstrip() + "\n"


def parser_section(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from (f"## `{parser.prog}`", "", f"{parser.description or ''}".strip(), "")
    yield from ("| flag | meaning |", "|---|---|")
    subparsers: list[argparse.ArgumentParser] = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            subparsers.extend(action.choices.values())
            continue
        yield f"| {flag_names(action)} | {flag_help(parser, action)} |"
    yield ""
    for sub in subparsers:
        yield from parser_section(sub)


def flag_names(action: argparse.Action) -> str:
    """`-m`, `--model SOURCE`."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    value = value or ("" if action.nargs == 0 else action.dest.upper())
    names = list(action.option_strings) or [""]
    names[-1] = f"{names[-1]} {value}".strip()
    return ", ".join(f"`{name}`" for name in names).replace("|", "\\|")


def flag_help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    default = action.default
    text = (action.help or "") % {"default": default, "prog": parser.prog}
    if isinstance(default, list):
        text += f" (default: {','.join(map(str, default))})"
    elif "default" not in text and default not in (None, False, argparse.SUPPRESS, ""):
        text += f" (default: {default})"
    return text.replace("|", "\\|")


def environment_page() -> str:
    """Every variable, from the docstrings of settings.py."""
    lines = ["# Environment variables", "", NOTICE, "", "`exllama/settings.py` is the only file that reads them.", ""]
    lines += ["| variable | meaning |", "|---|---|"]
    for _, function in sorted(inspect.getmembers(settings, inspect.isfunction)):
        found = re.match(r"`(EXLLAMA_\w+)`: (.*)", inspect.getdoc(function) or "", re.DOTALL)
        if found and function.__module__ == settings.__name__:
            lines.append(f"| `{found[1]}` | {' '.join(found[2].split())} |")
    return "\n".join(lines) + "\n"


MACHINES = (
    ("A laptop without a GPU", "cpu:14GiB", "8B", 4.0, "q8", 16384),
    ("A PC with a GPU of 8 GB", "7.5GiB,cpu:28GiB", "14B", 4.0, "q8", 8192),
    ("A workstation with 24 GB", "23.5GiB,cpu:60GiB", "32B", 4.0, "q8", 16384),
    ("Two GPUs of different size", "23.5GiB,15.5GiB,cpu:60GiB", "70B", 4.0, "q4", 32768),
    ("Eight GPUs of 80 GB", "8x79GiB,cpu:900GiB", "405B", 8.0, "fp16", 131072),
)


def placement_page() -> str:
    """docs/placement.md with the plans for MACHINES."""
    parts = [""]
    for title, machine, size, bits, cache, context in MACHINES:
        weights = recommend.parameters(size)
        sizes = recommend.with_bits(recommend.sizes_of(weights, cache), weights, bits)
        found = plan.plan(sizes, plan.parse_machine(machine), Wishes(cache_tokens=context))
        what = f"{size} weights, `--machine {machine} --context {context} --cache {cache}`"
        parts.append(f"### {title}\n\n{what}\n\n```\n{plan.describe(found)}\n```\n")
    text = (DOCS / "placement.md").read_text(encoding="utf-8")
    head, end = text.partition("<!-- plans -->")[0], text.partition("<!-- end -->")[2]
    return f"{head}<!-- plans -->\n" + "\n".join(parts) + f"\n<!-- end -->{end}"


PAGES = {"cli.md": cli_page, "environment.md": environment_page, "placement.md": placement_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
