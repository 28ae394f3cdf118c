"""The chat for real: the default model in a terminal, and behind a pipe."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exllama.loader.sources import resolve

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.model


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """This process's environment with an own home for history, and the default model that the machine already has."""
    own = {"HOME": str(folder), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, **changes}


def ask(words: list[str], question: str | bytes, folder: Path, **changes: str) -> subprocess.CompletedProcess[bytes]:
    data = question if isinstance(question, bytes) else question.encode()
    command = [sys.executable, "-m", "exllama.chat", "-m", str(resolve("default")), *words]
    env = environment(folder, **changes)
    return subprocess.run(command, input=data, capture_output=True, timeout=300, env=env, cwd=folder)


def test_a_pipe_gets_just_the_answer(tmp_path: Path) -> None:
    done = ask([], "What is the capital of France?\n", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert "Paris" in done.stdout.decode()
    assert b"\x1b" not in done.stdout
    assert b"tokens" not in done.stdout
    assert b"tokens/s" in done.stderr


def test_a_terminal_without_utf8(tmp_path: Path) -> None:
    changes = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = ask(["--max-new-tokens", "24"], "Repeat: naïve ☕ \xff".encode("latin-1", "replace"), tmp_path, **changes)
    assert done.returncode == 0, done.stderr.decode()
    done.stdout.decode("ascii")


def test_an_empty_pipe_and_a_prompt_that_is_too_long(tmp_path: Path) -> None:
    done = ask([], "  \n", tmp_path)
    assert done.returncode == 1
    assert b"standard input is empty" in done.stderr
    done = ask(["--cache-tokens", "512"], "word " * 2000, tmp_path)
    assert done.returncode == 1
    counts = [int(number) for number in re.findall(r"\d+", done.stderr.decode())]
    assert 512 in counts
    assert any(count > 2000 for count in counts)
    assert b"Traceback" not in done.stderr


class Terminal:
    """A child in a pseudo-terminal."""

    def __init__(self, master: int, child: int) -> None:
        self.master, self.child, self.shown = master, child, ""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, pattern: str, seconds: float = 60.0) -> str:
        """Reads until the pattern appears in what was shown since the last call, and returns that."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self._plain(), re.DOTALL)):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not appear in {self.shown[-2000:]!r}"
            if select.select([self.master], [], [], min(left, 0.5))[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode("utf-8", "replace")
                except OSError:
                    raise AssertionError(f"the chat ended before {pattern!r}: {self.shown[-2000:]!r}") from None
        plain = self._plain()
        self.shown = plain[found.end() :]
        return plain[: found.end()]

    def _plain(self) -> str:
        """What is shown, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.shown)

    def exit_code(self) -> int:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):  # a full terminal must not keep the child from ending
                if select.select([self.master], [], [], 0.1)[0]:
                    os.read(self.master, 65536)
            time.sleep(0.02)
        raise AssertionError("the chat did not end")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    import pty

    source = str(resolve("default"))
    child, master = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        command = [sys.executable, "-m", "exllama.chat", "-m", source, "--temperature", "0"]
        os.execve(sys.executable, command, environment(tmp_path, EXLLAMA_CACHE_DIR=str(tmp_path / "cache")))
    made = Terminal(master, child)
    yield made
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(master)


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_a_conversation_in_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for(r"/help\s+lists\s+the\s+commands.*>")
    terminal.type("What is the capital of France?\r")
    assert "Paris" in terminal.wait_for(r"tokens/s,\s+context \d+ of \d+")
    terminal.type("/params repetition_penalty 0.5\r")  # what was said once is said for ever
    terminal.wait_for(r"repetition_penalty = 0.5.*>")
    terminal.type("Tell a story.\r")
    terminal.wait_for(r"Tell a story.*\n\s*\w+\W+\w+\W+\w+")
    terminal.type("\x03")
    terminal.wait_for(r"stopped.*>")
    terminal.type("/params max_new_tokens 60\r")
    terminal.wait_for(r"max_new_tokens = 60.*>")
    terminal.type("Go on.\r")
    terminal.wait_for(r"Go on.*\n\s*\w+")
    terminal.type("/stats\r")  # typed ahead: not shown in the answer, carried out after it
    assert "/stats" not in terminal.wait_for(r"tokens/s,\s+context")
    terminal.wait_for(r"answers   3.*>")
    terminal.type(f"/save {tmp_path / 'talk.json'}\r")
    terminal.wait_for(r"saved 6 messages.*>")
    terminal.type("/nonsense\r")
    terminal.wait_for(r"no command /nonsense.*>")
    terminal.type("/quit\r")
    assert terminal.exit_code() == 0
    assert (tmp_path / "talk.json").is_file()
    assert "capital of France" in (tmp_path / "cache" / "chat_history").read_text(encoding="utf-8")
