"""A conversation and how its answers are sampled; saved and loaded as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from exllama.errors import FormatError, SourceError, UsageError
from exllama.generator import Sampling

FORMAT = "exllama-chat-1"
LARGEST_FILE = 16 << 20
ROLES = ("system", "user", "assistant")


@dataclass
class Conversation:
    """Messages in order, oldest first. system: the first message when set; kept by a reset."""

    sampling: Sampling
    system: str = ""
    max_new_tokens: int = 1024
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the chat template gets."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns]

    def say(self, role: str, content: str) -> None:
        self.turns.append({"role": role, "content": content})

    def take_back_answer(self) -> bool:
        """Removes the last answer so that it can be given again; False when there is no question to answer."""
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return bool(self.turns) and self.turns[-1]["role"] == "user"

    def set_parameter(self, name: str, text: str) -> None:
        """Changes one sampling parameter or max_new_tokens. Raises UsageError for an unknown name or a wrong value."""
        known = self.parameters()
        if name not in known:
            raise UsageError(f"no parameter {name!r}: expected one of {', '.join(known)}")
        try:
            value: Any = json.loads("null" if text.lower() in ("none", "off") else text)
        except json.JSONDecodeError:
            raise UsageError(f"{name} is {text!r}, expected a number (or none, or a list as JSON)") from None
        self._set(name, value)

    def parameters(self) -> dict[str, Any]:
        """Every parameter by name, with its value."""
        return {"max_new_tokens": self.max_new_tokens, **asdict(self.sampling)}

    def _set(self, name: str, value: Any) -> None:
        if name == "max_new_tokens":
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"max_new_tokens is {value!r}, expected a whole number from 1")
            self.max_new_tokens = value
        else:
            self.sampling = changed(self.sampling, name, value)

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        content = {"format": FORMAT, "system": self.system, "parameters": self.parameters(), "messages": self.turns}
        draft = path.with_name(path.name + ".part")
        try:
            draft.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            os.replace(draft, path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise SourceError(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        """Replaces everything by the file's content, or nothing. Raises SourceError or FormatError."""
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise FormatError(path, "format", content.get("format") if isinstance(content, dict) else content, FORMAT)
        fresh = Conversation(self.sampling)
        fresh.system = text_of(path, "system", content.get("system", ""))
        for message in list_of(path, "messages", content.get("messages")):
            role = message.get("role") if isinstance(message, dict) else message
            if role not in ROLES:
                raise FormatError(path, "messages.role", role, f"one of {', '.join(ROLES)}")
            fresh.say(role, text_of(path, "messages.content", message.get("content")))
        parameters = content.get("parameters", {})
        if not isinstance(parameters, dict) or not set(parameters) <= set(self.parameters()):
            raise FormatError(path, "parameters", parameters, f"an object with {', '.join(self.parameters())}")
        for name, value in parameters.items():
            fresh._set(name, value)
        self.__dict__.update(fresh.__dict__)


def changed(sampling: Sampling, name: str, value: Any) -> Sampling:
    """A copy with one field changed, None meaning its default; Sampling itself checks the range."""
    default = next(entry.default for entry in fields(sampling) if entry.name == name)
    if name == "logit_bias" and isinstance(value, dict):  # the keys of JSON objects are text
        value = {int(token) if token.isdecimal() else token: bias for token, bias in value.items()}
    changes: dict[str, Any] = {name: default if value is None else value}
    return replace(sampling, **changes)


def read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise FormatError(path, "size", path.stat().st_size, f"at most {LARGEST_FILE} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(path, "file", type(error).__name__, "a conversation written by /save") from None


def text_of(path: Path, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise FormatError(path, name, value, "text")
    return value


def list_of(path: Path, name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(path, name, value, "a list")
    return value
