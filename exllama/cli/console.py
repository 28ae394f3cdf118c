"""How command lines talk: messages and progress on stderr, results on stdout, errors as one sentence."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from exllama.errors import ExllamaError, SourceError

STDOUT = "-"
FAILED, INTERRUPTED = 1, 130


def messages() -> Console:
    """The console for everything that is not the result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A loader.progress.Progress that draws one bar per job on stderr, and nothing where nobody can see it."""
    percent = TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), percent, TimeRemainingColumn())
    console = messages()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield show


def write_json(lines: list[dict[str, Any]], target: str) -> None:
    """One JSON object a line into a file, or to stdout for "-". Raises SourceError when the file cannot be written."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if target == STDOUT:
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SourceError(f"cannot write {target}: {error.strerror}") from error


def run_command_line(command: Callable[[], int]) -> int:
    """Runs the body of an entry point; every expected failure becomes one sentence and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="exllama: %(message)s", stream=sys.stderr)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        tolerate_any_text(stream)
    try:
        code = command()
        sys.stdout.flush()
        return code
    except ExllamaError as error:
        sys.stderr.write(f"exllama: {error}\n")
        return FAILED
    except MemoryError as error:
        sys.stderr.write(f"exllama: out of memory ({error}): try `python -m exllama.devices plan`\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("exllama: stopped\n")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader has gone; Python would complain once more while closing stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def tolerate_any_text(stream: Any) -> None:
    """What a stream's encoding lacks is replaced by "?" instead of ending the program."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
