"""Running the vendors' tools: they can be missing, wrong, slow, endless or stuck in the kernel."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from exllama import settings

MAX_OUTPUT = 4 << 20  # bytes that are kept of what a tool prints; the rest is read and thrown away
_WSL = "/usr/lib/wsl/lib"
_WAIT = 1.0  # seconds for a killed process to go


class ToolFailure(Exception):
    """A tool did not answer; the text is one line for a person."""


def find_tool(name: str) -> str | None:
    """The path of a tool on PATH, or where WSL keeps it."""
    return shutil.which(name) or shutil.which(name, path=_WSL)


def run_tool(command: Sequence[str], seconds: float, changes: dict[str, str] | None = None) -> str:
    """What a command prints; changes: of its environment. Raises ToolFailure, at the latest after `seconds` and a bit.

    A command that fails but prints something tells its reason there: nvidia-smi writes errors to stdout.
    """
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, env=settings.child_environment(LC_ALL="C", **(changes or {})),
        )  # fmt: skip
    except OSError as error:
        raise ToolFailure(f"{name} cannot be started: {error.strerror or error}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = _Reader(process.stdout), _Reader(process.stderr)
    end = time.monotonic() + seconds
    try:
        code = process.wait(seconds)
        text, trouble = out.text(end), err.text(end)
    except subprocess.TimeoutExpired:
        raise ToolFailure(f"{name} gave no answer within {seconds:g} s and was stopped") from None
    finally:
        _kill(process)
    if code:
        raise ToolFailure(f"{name} {_ending(code)}: {_last_line(text) or _last_line(trouble) or 'no message'}")
    return text


class _Reader:
    """Empties a pipe, so that nobody who fills it waits."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self._kept = pipe, bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self, end: float) -> str:
        """What came until the pipe was closed. A grandchild may keep it open: then what came until `end`."""
        self._thread.join(max(0.0, end - time.monotonic()))
        return bytes(self._kept).decode("utf-8", errors="replace")

    def _read(self) -> None:
        with self._pipe:
            while block := self._pipe.read1(1 << 16):  # type: ignore[attr-defined]
                self._kept += block[: MAX_OUTPUT - len(self._kept)]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the tool and what it started. One that is stuck in the driver stays, without anybody waiting for it."""
    try:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(_WAIT)
    except (OSError, subprocess.TimeoutExpired):
        return


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(c if c.isprintable() else "?" for c in lines[-1])[:200] if lines else ""
