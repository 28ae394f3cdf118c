"""The slash commands: one function each, found by name. They change the conversation and return what to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exllama.cli.chat.conversation import Conversation
from exllama.cli.chat.statistics import Statistics
from exllama.errors import UsageError


@dataclass
class Chat:
    """What commands work on."""

    conversation: Conversation
    statistics: Statistics


@dataclass(frozen=True)
class Outcome:
    """text: shown to the user. leave: end the program. answer: let the model answer the conversation as it stands."""

    text: str = ""
    leave: bool = False
    answer: bool = False


@dataclass(frozen=True)
class Command:
    """usage: what follows the name; summary: one line of /help."""

    usage: str
    summary: str
    run: Callable[[Chat, str], Outcome]


def _help(chat: Chat, rest: str) -> Outcome:
    rows = [(f"/{name} {command.usage}".rstrip(), command.summary) for name, command in COMMANDS.items()]
    width = max(len(left) for left, _ in rows)
    lines = [f"{left:<{width}}  {right}" for left, right in rows]
    keys = "Enter sends, Alt+Enter or Ctrl+J starts a new line, Ctrl+C stops an answer, Ctrl+D leaves."
    return Outcome("\n".join([*lines, keys]))


def _reset(chat: Chat, rest: str) -> Outcome:
    chat.conversation.turns.clear()
    return Outcome("the conversation is empty" + (", the system message stays" if chat.conversation.system else ""))


def _system(chat: Chat, rest: str) -> Outcome:
    if not rest:
        unset = "no system message is set: /system TEXT sets one, /system - removes it"
        return Outcome(chat.conversation.system or unset)
    chat.conversation.system = "" if rest == "-" else rest
    return Outcome("the system message is " + ("removed" if rest == "-" else "set"))


def _save(chat: Chat, rest: str) -> Outcome:
    path = _path(rest, "/save FILE")
    chat.conversation.save(path)
    return Outcome(f"saved {len(chat.conversation.turns)} messages to {path}")


def _load(chat: Chat, rest: str) -> Outcome:
    path = _path(rest, "/load FILE")
    chat.conversation.load(path)
    return Outcome(f"loaded {len(chat.conversation.turns)} messages from {path}")


def _regenerate(chat: Chat, rest: str) -> Outcome:
    if not chat.conversation.take_back_answer():
        return Outcome("there is no question to answer again")
    return Outcome(answer=True)


def _params(chat: Chat, rest: str) -> Outcome:
    words = rest.split()
    if len(words) == 2:
        chat.conversation.set_parameter(*words)
    elif words:
        raise UsageError("expected /params, or /params NAME VALUE")
    return Outcome("\n".join(f"{name} = {value}" for name, value in chat.conversation.parameters().items()))


def _stats(chat: Chat, rest: str) -> Outcome:
    return Outcome(chat.statistics.report())


def _quit(chat: Chat, rest: str) -> Outcome:
    return Outcome(leave=True)


def _path(rest: str, usage: str) -> Path:
    if not rest:
        raise UsageError(f"no file named: expected {usage}")
    return Path(rest).expanduser()


COMMANDS = {
    "help": Command("", "this list", _help),
    "reset": Command("", "forget the conversation", _reset),
    "system": Command("[TEXT | -]", "show, set or remove the system message", _system),
    "save": Command("FILE", "write the conversation as JSON", _save),
    "load": Command("FILE", "go on with a saved conversation", _load),
    "regenerate": Command("", "answer the last question again", _regenerate),
    "params": Command("[NAME VALUE]", "show or change how answers are sampled", _params),
    "stats": Command("", "tokens, speed and context use so far", _stats),
    "quit": Command("", "leave", _quit),
}


def run_command(line: str, chat: Chat) -> Outcome:
    """Carries out a line that starts with a slash. Raises UsageError for an unknown command or wrong words."""
    name, _, rest = line[1:].partition(" ")
    name = name.strip().lower()
    if name not in COMMANDS:
        raise UsageError(f"no command /{name}: expected {', '.join('/' + known for known in COMMANDS)}")
    return COMMANDS[name].run(chat, rest.strip())
