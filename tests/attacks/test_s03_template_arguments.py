"""Arguments of a chat that would replace what the engine itself passes to a template."""

from __future__ import annotations

from typing import Any

import pytest

from exllama.errors import ExllamaError, UsageError
from exllama.tokenizer.chat_template import ChatTemplate


@pytest.mark.parametrize("name", [
    "tokenize", "chat_template", "messages", "bos_token", "eos_token", "raise_exception", "range", "namespace", "self",
    "environment", "loop", "strftime_now", "return_tensors", "continue_final_message", "__class__", "conversation",
])  # fmt: skip
def test_s03_only_known_names_are_taken(name: str) -> None:
    """S03: the list of names is a list of what is allowed."""
    arguments: dict[str, Any] = {name: "x"}
    with pytest.raises((UsageError, TypeError)):
        ChatTemplate("{{ bos_token }}").render([{"role": "user", "content": "x"}], **arguments)


@pytest.mark.parametrize("value", [object(), print, b"bytes", {1: 2}, {"a": {1, 2}}, [lambda: None], type, 1j])
def test_s03_values_are_plain_json(value: object) -> None:
    """S03: an allowed name can not carry an object with methods into the template."""
    with pytest.raises(ExllamaError):
        ChatTemplate("{{ tools }}").render([], tools=value)


def test_s03_a_class_that_looks_like_text_loses_its_methods() -> None:
    """S03: subclasses of str and dict become plain ones."""

    class Text(str):
        def strip(self, *arguments: Any) -> str:
            raise AssertionError("called")

    class Table(dict[str, Any]):
        def items(self) -> Any:
            yield "role", Text("user")
            yield "content", Text(" x ")

    message = Table(role="user", content="y")
    assert ChatTemplate("{{ messages[0].content.strip() }}").render([message]) == "x"
