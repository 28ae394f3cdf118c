"""How command lines talk: messages and progress on stderr, results on stdout, errors as one sentence.

Entry points import this module and argparse alone before `run_command_line`: what takes longer to import is imported
inside it, so that Ctrl-C ends that too with a sentence, and `--help` is there at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exllama.errors import NO_TORCH, ExllamaError, SourceError
from exllama.loader.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = "-"
FAILED, INTERRUPTED = 1, 130


def messages() -> Console:
    """The console for everything that is not the result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """A Progress that draws one bar per job on stderr, and nothing where nobody can see it."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    percent = TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), percent, TimeRemainingColumn())
    console = messages()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

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


def write_text(text: str, target: str) -> None:
    """A whole file. Raises SourceError when it cannot be written."""
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SourceError(f"cannot write {target}: {error.strerror}") from error


def run_command_line(command: Callable[[], int]) -> int:
    """Runs the body of an entry point; every expected failure becomes one sentence and an exit code."""
    open_closed_streams()
    logging.basicConfig(level=logging.WARNING, format="exllama: %(message)s", stream=sys.stderr)
    logging.raiseExceptions = False  # a stderr that cannot be written is no reason to stop
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        tolerate_any_text(stream)
    try:
        code = command()
        sys.stdout.flush()
        return code
    except ExllamaError as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return fail(NO_TORCH)
    except MemoryError as error:
        return fail(f"out of memory ({error}): try `python -m exllama.devices plan`")
    except KeyboardInterrupt:
        return fail("stopped", INTERRUPTED)
    except BrokenPipeError:
        return fail("")  # the reader has gone, and has seen what it wanted
    except OSError as error:
        where = error.filename or "the output"
        return fail(f"{where} cannot be read or written: {error.strerror or error}")


def _harmless(text: str) -> str:
    """Without what would steer a terminal: paths and names in a message may come from anybody."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def fail(text: str, code: int = FAILED) -> int:
    """Says why on stderr, if that is still there, and lets nothing more come out. Returns the exit code."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"exllama: {_harmless(text)}\n" if text else "")
        sys.stderr.flush()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would complain once more when it closes the stream
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def open_closed_streams() -> None:
    """Standard streams that the caller has closed become empty ones, else the next file would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115, it lives as long as the process
            setattr(sys, name, stream)


def tolerate_any_text(stream: Any) -> None:
    """What a stream's encoding lacks is replaced by "?" instead of ending the program."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
