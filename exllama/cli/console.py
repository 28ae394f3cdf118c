"""How command lines talk: messages and progress on stderr, results on stdout, errors as one sentence."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from exllama.errors import ExllamaError, SourceError
from exllama.loader.progress import Progress

STDOUT = "-"
FAILED, INTERRUPTED = 1, 130


def messages() -> Console:
    """The console for everything that is not the result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """A Progress that draws one bar per job on stderr, and nothing where nobody can see it."""
    percent = TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), percent, TimeRemainingColumn())
    console = messages()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield show


def write_json(lines: Iterable[dict[str, Any]], target: str) -> None:
    """One JSON object a line, each as soon as it is known, into a file or, for "-", to stdout.

    Raises SourceError when the file cannot be written, before the first line is asked for.
    """
    try:
        with contextlib.ExitStack() as stack:
            out = sys.stdout if target == STDOUT else stack.enter_context(Path(target).open("w", encoding="utf-8"))
            for line in lines:
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                out.flush()
    except OSError as error:
        if target == STDOUT:
            raise
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
