"""Conversations as the model was trained to see them: the template that comes with it, run in a sandbox with limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from exllama.errors import TemplateError, UsageError

MAX_TEMPLATE = 1 << 20  # characters
MAX_DEPTH = 32
ALLOWED = frozenset({
    "tools", "documents", "enable_thinking", "thinking", "thinking_budget", "preserve_thinking", "reasoning_effort",
    "date_string", "builtin_tools", "custom_tools", "xml_tools", "tools_in_user_message", "model_identity",
})  # fmt: skip
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# One that no text holds marks where a control token was cut. Hieroglyphs have no case and are printable, so that
# upper(), repr() and the like leave them alone.
_MARKS = [chr(code) for code in range(0x13000, 0x13400)]


class ChatTemplate:
    """A Jinja template in the dialect of Hugging Face's chat templates.

    names: bos_token, eos_token and the like, as variables of the template. Compiled when first rendered.
    """

    def __init__(self, source: str, names: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_TEMPLATE:
            raise TemplateError(f"the chat template has {len(source)} characters, at most {MAX_TEMPLATE} are allowed")
        self.source = source
        self._names = dict(names or {})
        self._compiled: dict[str, Any] = {}

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **allowed: Any) -> str:
        """The conversation as one text.

        messages: dictionaries of plain JSON values with at least a role. allowed: variables out of ALLOWED.
        Raises UsageError for arguments that make no sense, TemplateError when the template fails or exceeds a limit.
        """
        return "".join(self.render_parts(messages, (), add_generation_prompt, **allowed))

    def render_parts(
        self, messages: Sequence[Mapping[str, Any]], control: Sequence[str], add_generation_prompt: bool, **allowed: Any
    ) -> list[str]:
        """render(), cut inside every control token (by name) that a message or argument spells out.

        Each part is to be tokenized alone: then control tokens can only come from the template.
        """
        unknown = set(allowed) - ALLOWED
        if unknown:
            names = ", ".join(sorted(ALLOWED))
            raise UsageError(f"chat template argument {min(unknown)!r} is not allowed; allowed: {names}")
        _check_messages(messages)
        plain = _plain({"messages": list(messages), **allowed})
        texts = list(_texts(plain))
        known = {*texts, self.source, *self._names.values()}
        mark = next((mark for mark in _MARKS if not any(mark in text for text in known)), None)
        if mark is None:
            raise UsageError("the messages hold every hieroglyph of Unicode; remove some")
        defaults = {"tools": None, "documents": None, "add_generation_prompt": bool(add_generation_prompt)}
        variables = defaults | self._names | _break_control(plain, control, mark)
        return self._run(variables, sum(map(len, texts))).split(mark)

    def _run(self, variables: dict[str, Any], inputs: int) -> str:
        from exllama.tokenizer.template_sandbox import render  # jinja2 takes 30 ms, and not every program chats

        return render(self.source, self._compiled, variables, inputs)


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError(f"messages is {type(messages).__name__}, expected a list of {{'role': ..., 'content': ...}}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(f"message {index} is {type(message).__name__}, expected {{'role': ..., 'content': ...}}")
        role = message.get("role")
        if not isinstance(role, str) or _ROLE.fullmatch(role) is None:
            found = str(role)[:80]
            raise UsageError(f"the role of message {index} is {found!r}, expected a name such as user or assistant")


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy out of plain JSON types, so that a template meets no object with a will of its own."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if depth > MAX_DEPTH:
        raise UsageError(f"messages are nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UsageError("a key in the messages is no string")
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise UsageError(f"the messages hold a {type(value).__name__}, expected text, numbers, lists and dictionaries")


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _break_control(value: Any, control: Sequence[str], mark: str) -> Any:
    names = sorted((name for name in control if len(name) > 1), key=len, reverse=True)
    if not names:
        return value
    pattern = re.compile("|".join(map(re.escape, names)))

    def broken(text: str) -> str:
        while pattern.search(text):  # tokens may overlap: breaking one can leave another
            text = pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        return text

    def walk(item: Any) -> Any:
        if isinstance(item, str):
            return broken(item)
        if isinstance(item, dict):
            return {broken(key): walk(inner) for key, inner in item.items()}
        return [walk(inner) for inner in item] if isinstance(item, list) else item

    return walk(value)
