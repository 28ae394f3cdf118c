"""What an answer may look like, as a value: the same object may be in any number of jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from exllama.errors import UsageError

Kind = Literal["json_schema", "lark", "regex"]
MAX_LENGTH = 4 << 20  # characters of a grammar


@dataclass(frozen=True)
class Grammar:
    """Made by one of the class methods; `text` is JSON for a schema. What is wrong inside is told by enqueue."""

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not 0 < len(self.text) <= MAX_LENGTH:
            found = f"{len(self.text)} characters" if isinstance(self.text, str) else type(self.text).__name__
            raise UsageError(f"a grammar is {found}, expected text of 1 to {MAX_LENGTH} characters")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that the schema describes, without spaces between values."""
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(parsed)
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"the JSON schema is not JSON: {error}") from error
        if not isinstance(parsed, Mapping):
            raise UsageError(f"the JSON schema is a JSON {type(parsed).__name__}, expected an object")
        return cls("json_schema", text)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that the whole pattern matches (syntax of Rust's regex crate, without look-around)."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, grammar: str) -> Grammar:
        """Text that the rule `start` of a Lark grammar describes: an EBNF of rules and of terminals in capitals."""
        return cls("lark", grammar)

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Grammar:
        """Exactly one of these texts."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UsageError(f"choices are {texts!r}, expected a list of texts that are not empty")
        return cls("regex", "|".join(f"({literal(text)})" for text in texts))

    @classmethod
    def prefix(cls, text: str) -> Grammar:
        """Anything that begins with this text."""
        return cls("regex", f"{literal(text)}(?s:.*)")

    @classmethod
    def without(cls, texts: Sequence[str]) -> Grammar:
        """Anything in which none of these texts occurs."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UsageError(f"banned strings are {texts!r}, expected a list of texts that are not empty")
        banned = "|".join(literal(text) for text in texts)
        return cls("lark", f"TEXT: /(?s:.*)/ & ~/(?s:.*)({banned})(?s:.*)/\nstart: TEXT")


def literal(text: str) -> str:
    """A regular expression that matches this text alone; without characters that Lark or regular expressions read."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)
