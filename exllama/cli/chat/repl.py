"""The loop: a line is a command or a question, a question gets an answer; and the same once for a pipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from exllama import settings
from exllama.cli.chat.answer import ctrl_c_stops, stream_answer
from exllama.cli.chat.commands import COMMANDS, Chat, run_command
from exllama.cli.chat.screen import Screen
from exllama.errors import ExllamaError, UsageError
from exllama.generator import Generator

PROMPT = "> "
HISTORY = "chat_history"


class Repl:
    """One chat. read: gives the next input; EOFError means leave, KeyboardInterrupt means start the line again."""

    def __init__(self, generator: Generator, chat: Chat, screen: Screen, read: Callable[[], str]) -> None:
        self._generator, self._chat, self._screen, self._read = generator, chat, screen, read

    def run(self) -> None:
        """Until the user leaves. Expected errors are told and the chat goes on."""
        while True:
            try:
                line = self._read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._screen.note("Ctrl+D or /quit leaves")
                continue
            try:
                if line and not self._carry_out(line):
                    return
            except ExllamaError as error:
                self._screen.note(str(error))

    def ask(self, text: str) -> None:
        """A question and its answer; a question that cannot be answered is not remembered."""
        turns = self._chat.conversation.turns
        before = list(turns)
        self._chat.conversation.say("user", text)
        try:
            self.answer()
        except BaseException:
            turns[:] = before
            raise

    def answer(self) -> None:
        """Answers the conversation as it stands and remembers what was said, also when it was stopped."""
        said: list[str] = []
        with ctrl_c_stops() as stopped:
            for part in stream_answer(self._generator, self._chat.conversation, stopped):
                if isinstance(part, str):
                    said.append(part)
                    self._screen.chunk(part)
                else:
                    counts = part
        self._screen.end()
        self._chat.conversation.say("assistant", "".join(said))
        self._chat.statistics.add(counts)
        self._screen.note(self._chat.statistics.line(counts))

    def _carry_out(self, line: str) -> bool:
        """False to leave."""
        if not line.startswith("/"):
            self.ask(line)
            return True
        outcome = run_command(line, self._chat)
        if outcome.text:
            self._screen.note(outcome.text)
        if outcome.answer:
            self.answer()
        return not outcome.leave


def terminal_reader(terminal: Input | None = None, output: Output | None = None) -> Callable[[], str]:
    """Reads from a terminal with history, completion, several lines. terminal, output: None for the process's own."""
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=open_history(settings.cache_dir() / HISTORY),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="  ",
        input=terminal,
        output=output,
    )
    return lambda: session.prompt(PROMPT)


def open_history(path: Path) -> History:
    """The history file, readable by its owner alone; kept in memory where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("a", encoding="utf-8"):
            return FileHistory(str(path))
    except OSError:
        return InMemoryHistory()


def answer_pipe(repl: Repl, text: str) -> None:
    """All of a pipe is one question. Raises UsageError when there is none."""
    if not text.strip():
        raise UsageError("standard input is empty: expected a question, as in: echo 'Why is the sky blue?' | make chat")
    repl.ask(text.strip())
