"""The chat's own behaviour, driven through prompt_toolkit's pipe input; a scripted generator stands for the model."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from exllama.cli.chat.commands import COMMANDS, Chat, run_command
from exllama.cli.chat.conversation import Conversation
from exllama.cli.chat.repl import Repl, answer_pipe, open_history, terminal_reader
from exllama.cli.chat.screen import ColourScreen, PlainScreen, Screen
from exllama.cli.chat.statistics import AnswerCounts, Statistics, rate
from exllama.errors import ContextError, ExllamaError, FormatError, SourceError, UsageError
from exllama.generator import Finished, Generator, Job, Sampling, Text
from exllama.generator.events import Times

CONTEXT = 100


class Scripted:
    """Answers with the given pieces, one a step; a token is a word."""

    context_length = CONTEXT

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.tokenizer = self
        self.prompts: list[list[dict[str, str]]] = []
        self.jobs: list[Job] = []
        self.cancelled: list[Job] = []
        self.on_step: Callable[[], None] = lambda: None

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        self.prompts.append([dict(message) for message in messages])
        return [7] * sum(len(message["content"].split()) for message in messages)

    def enqueue(self, job: Job) -> Job:
        if len(job.prompt) >= CONTEXT:
            raise ContextError(len(job.prompt), CONTEXT)
        self.jobs.append(job)
        self.left = self.answers.pop(0)
        self.said: list[str] = []
        return job

    def step(self) -> list[Any]:
        self.on_step()
        job = self.jobs[-1]
        piece = self.left.pop(0)
        self.said.append(piece)
        events: list[Any] = [Text(job, piece, (1,))]
        if not self.left:
            events.append(self.finish(job, "stop_token"))
        return events

    def cancel(self, job: Job) -> None:
        if job.finished is None:
            self.cancelled.append(job)
            self.finish(job, "cancelled")

    def finish(self, job: Job, reason: Any) -> Finished:
        job.finished = Finished(
            job, "".join(self.said), reason, len(job.prompt), len(self.said), 0, 0, 0, Times(0.0, 0.5, 2.0)
        )
        return job.finished


class Recorder:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.text, self.notes = "", list[str]()

    def chunk(self, text: str) -> None:
        self.text += text

    def end(self) -> None:
        self.text += "\n"

    def note(self, text: str) -> None:
        self.notes.append(text)


def make(generator: Scripted, screen: Screen, read: Callable[[], str] | None = None) -> tuple[Repl, Chat]:
    chat = Chat(Conversation(Sampling(temperature=0.0)), Statistics(CONTEXT))
    return Repl(cast(Generator, generator), chat, screen, read or iter(()).__next__), chat


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXLLAMA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chat_history"


def type_in(keys: str, generator: Scripted) -> tuple[Recorder, Chat]:
    """Runs the REPL over what a person types; it ends with Ctrl-D."""
    screen = Recorder()
    with create_pipe_input() as terminal:
        terminal.send_text(keys + "\x04")
        repl, chat = make(generator, screen, terminal_reader(terminal, DummyOutput()))
        repl.run()
    return screen, chat


def test_a_question_is_answered_and_remembered(history: Path) -> None:
    generator = Scripted(["Blue", " sky."], ["Yes."])
    screen, chat = type_in("why?\rreally?\r", generator)
    assert screen.text == "Blue sky.\nYes.\n"
    assert [message["content"] for message in chat.conversation.turns] == ["why?", "Blue sky.", "really?", "Yes."]
    assert [message["role"] for message in generator.prompts[1]] == ["user", "assistant", "user"]
    assert "2 tokens, 0.5 tokens/s, context 3 of 100 (3 %)" in screen.notes[0]
    assert history.read_text(encoding="utf-8").count("+") == 2
    assert history.stat().st_mode & 0o077 == 0


def test_a_line_break_does_not_send(history: Path) -> None:
    generator = Scripted(["ok"], ["ok"])
    type_in("one\x1b\rtwo\rthree\nfour\r", generator)
    assert [prompt[-1]["content"] for prompt in generator.prompts] == ["one\ntwo", "three\nfour"]


def test_history_is_offered_in_the_next_chat(history: Path) -> None:
    type_in("first question\r", Scripted(["a"]))
    generator = Scripted(["b"])
    type_in("\x1b[A\r", generator)
    assert generator.prompts[0][-1]["content"] == "first question"


def test_ctrl_c_in_a_line_starts_it_again(history: Path) -> None:
    generator = Scripted(["a"])
    screen, _ = type_in("half a thou\x03whole\r", generator)
    assert generator.prompts[0][-1]["content"] == "whole"
    assert "Ctrl+D" in screen.notes[0]


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    generator = Scripted(["one ", "two ", "three"], ["again"])
    generator.on_step = lambda: os.kill(os.getpid(), signal.SIGINT) if len(generator.said) == 1 else None
    screen = Recorder()
    repl, chat = make(generator, screen)
    before = signal.getsignal(signal.SIGINT)
    repl.ask("count")
    assert signal.getsignal(signal.SIGINT) is before
    assert len(generator.cancelled) == 1
    assert screen.text == "one two \n"
    assert "stopped" in screen.notes[-1]
    assert chat.conversation.turns[-1] == {"role": "assistant", "content": "one two "}
    generator.on_step = lambda: None
    repl.ask("go on")
    assert screen.text.endswith("again\n")


def test_a_conversation_that_is_too_long_is_told_with_counts(history: Path) -> None:
    """R14: the chat says it too, and nothing is dropped."""
    screen, chat = type_in("word " * 120 + "\rshort\r", Scripted(["fine"]))
    assert "120 tokens" in screen.notes[0]
    assert "100" in screen.notes[0]
    assert [message["content"] for message in chat.conversation.turns] == ["short", "fine"]


def test_regenerate_answers_the_same_question_again(history: Path) -> None:
    generator = Scripted(["first"], ["second"])
    screen, chat = type_in("/regenerate\rquestion\r/regenerate\r", generator)
    assert screen.notes[0] == "there is no question to answer again"
    assert generator.prompts[0] == generator.prompts[1]
    assert [message["content"] for message in chat.conversation.turns] == ["question", "second"]


def test_system_reset_and_quit(history: Path) -> None:
    generator = Scripted(["a"], ["b"])
    screen, chat = type_in("/system Be brief.\rhi\r/reset\r/system\rho\r/system -\r/quit\rnever asked\r", generator)
    assert generator.prompts[1] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ho"}]
    assert "Be brief." in screen.notes
    assert chat.conversation.system == ""
    assert len(generator.prompts) == 2


def test_params_reach_the_job(history: Path) -> None:
    generator = Scripted(["a"])
    changes = ("temperature 0.5", "seed 3", "max_new_tokens 9", "seed none")
    screen, _ = type_in("".join(f"/params {change}\r" for change in changes) + "hi\r", generator)
    assert generator.jobs[0].sampling == Sampling(temperature=0.5)
    assert generator.jobs[0].max_new_tokens == 9
    assert "seed = 3" in screen.notes[1]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/params heat 3", "no parameter 'heat': expected one of max_new_tokens, temperature"),
        ("/params temperature hot", "expected a number"),
        ("/params temperature true", "expected a number"),
        ("/params temperature -1", "temperature is -1"),
        ("/params top_k 1.5", "top_k is 1.5, expected a whole number"),
        ("/params max_new_tokens 0", "expected a whole number from 1"),
        ("/params a b c", "/params NAME VALUE"),
        ("/frobnicate", "no command /frobnicate: expected /help"),
        ("/save", "expected /save FILE"),
        ("/load", "expected /load FILE"),
        ("/load /nowhere/at/all", "No such file"),
        ("/save /nowhere/at/all", "cannot write"),
    ],
)
def test_wrong_commands_say_what_was_expected(line: str, complaint: str) -> None:
    with pytest.raises((UsageError, SourceError)) as caught:
        run_command(line, make(Scripted(), Recorder())[1])
    assert complaint in str(caught.value)


def test_a_wrong_command_does_not_end_the_chat(history: Path) -> None:
    screen, _ = type_in("/nonsense\rhi\r", Scripted(["a"]))
    assert "no command /nonsense" in screen.notes[0]
    assert screen.text == "a\n"


def test_help_and_stats(history: Path) -> None:
    screen, _ = type_in("/help\rhi there\r/stats\r", Scripted(["a", "b", "c"]))
    assert all(f"/{name}" in screen.notes[0] for name in COMMANDS)
    assert "answers   1" in screen.notes[2]
    assert "prompt    2 tokens, 0 of them from the cache, 4.0 tokens/s" in screen.notes[2]
    assert "answered  3 tokens, 1.0 tokens/s" in screen.notes[2]


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    _, chat = make(Scripted(), Recorder())
    chat.conversation.system = "Sei kurz. ☕"
    chat.conversation.say("user", "a\nb")
    chat.conversation.say("assistant", "c")
    chat.conversation.set_parameter("top_p", "0.5")
    run_command(f"/save {path}", chat)
    _, other = make(Scripted(), Recorder())
    run_command(f"/load {path}", other)
    assert other.conversation == chat.conversation
    assert set(json.loads(path.read_text(encoding="utf-8"))) == {"format", "system", "parameters", "messages"}
    assert list(tmp_path.iterdir()) == [path]


GOOD = {"format": "exllama-chat-1", "system": "", "parameters": {}, "messages": []}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b"{", b"[" * 100_000,
        json.dumps({**GOOD, "format": "else"}).encode(),
        json.dumps({**GOOD, "messages": None}).encode(),
        json.dumps({**GOOD, "messages": [1]}).encode(),
        json.dumps({**GOOD, "messages": [{"role": "tool", "content": "x"}]}).encode(),
        json.dumps({**GOOD, "messages": [{"role": "user", "content": 5}]}).encode(),
        json.dumps({**GOOD, "system": 5}).encode(),
        json.dumps({**GOOD, "parameters": {"heat": 5}}).encode(),
        json.dumps({**GOOD, "parameters": {"temperature": "5"}}).encode(),
        json.dumps({**GOOD, "parameters": [5]}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_file_changes_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    _, chat = make(Scripted(), Recorder())
    chat.conversation.say("user", "kept")
    with pytest.raises((FormatError, UsageError)):
        chat.conversation.load(path)
    assert chat.conversation.turns == [{"role": "user", "content": "kept"}]


def test_a_pipe_gets_the_answer_and_nothing_else() -> None:
    out, notes = io.StringIO(), io.StringIO()
    repl, _ = make(Scripted(["Par", "\x1b[31mis", "."]), PlainScreen(out, notes))
    answer_pipe(repl, " What is\nthe capital? \n")
    assert out.getvalue() == "Paris.\n"
    assert "3 tokens" in notes.getvalue()
    with pytest.raises(UsageError, match="standard input is empty"):
        answer_pipe(repl, " \n")


def test_a_question_that_failed_is_not_remembered() -> None:
    repl, chat = make(Scripted(), Recorder())
    with pytest.raises(ExllamaError):
        repl.ask("word " * 200)
    assert chat.conversation.turns == []


def test_colours_keep_the_text() -> None:
    out = io.StringIO()
    screen = ColourScreen(Console(file=out, force_terminal=True, color_system="standard", width=20, highlight=False))
    for piece in ["# He", "ad\n", "a **bo", "ld** word and a very long line that no one breaks [red]x[/red]", " `c"]:
        screen.chunk(piece)
    screen.end()
    shown = out.getvalue()
    assert "\x1b[" in shown
    plain = "".join(part.split("m", 1)[-1] for part in ("m" + shown).split("\x1b["))
    assert plain == "# Head\na **bold** word and a very long line that no one breaks [red]x[/red] `c\n"


def test_a_terminal_without_colour_gets_none() -> None:
    out = io.StringIO()
    screen = ColourScreen(Console(file=out, force_terminal=False, highlight=False))
    screen.chunk("**b**")
    screen.end()
    assert out.getvalue() == "**b**\n"


def test_history_falls_back_to_memory(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert type(open_history(blocked / "chat_history")).__name__ == "InMemoryHistory"


def test_speed_without_time_is_no_division() -> None:
    assert rate(5, 0.0) == "no time measured"
    counts = AnswerCounts("context", 90, 10, 10, 1.0, 2.0)
    assert "the context is full" in Statistics(CONTEXT).line(counts)
    assert "100 of 100" in Statistics(CONTEXT).line(counts)
