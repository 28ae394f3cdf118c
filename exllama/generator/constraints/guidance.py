"""Grammars by llguidance (extra [grammar]): compiled once, masks computed by a thread while the model runs."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from exllama.errors import UsageError
from exllama.generator.constraints.constraint import AllOf, Constraint, Words
from exllama.generator.constraints.grammar import Grammar, literal

_KEPT = 64  # compiled grammars
# Places of a JSON schema that hold one schema, a list of them, or several by name.
_ONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("$defs", "definitions", "properties", "patternProperties")  # what is referred to before who refers to it


class Vocabulary(Protocol):
    """What is used of tokenizer.Tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def control_ids(self) -> Any: ...
    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]: ...
    def id_to_piece(self, token_id: int) -> bytes: ...


class GuidanceConstraint:
    """One answer's matcher. From `accept` on, the next mask is computed in a thread without Python's lock."""

    def __init__(self, matcher: Any, num_words: int, pool: ThreadPoolExecutor) -> None:
        self._matcher, self._pool = matcher, pool
        self._words: Words = np.zeros(num_words, np.uint32)
        self._ready: Future[None] = pool.submit(self._compute)

    @property
    def error(self) -> str:
        """See Constraint."""
        self._ready.result()
        if self._matcher.is_error():
            return f"the grammar cannot be followed any further: {_first_line(self._matcher.get_error())}"
        return "" if self._words.any() else "no token continues what the grammar describes"

    def mask(self) -> Words:
        """See Constraint."""
        self._ready.result()
        return self._words

    def accept(self, token: int) -> None:
        """See Constraint."""
        self._ready.result()
        self._matcher.consume_token(token)
        self._ready = self._pool.submit(self._compute)

    def rollback(self, count: int) -> None:
        """See Constraint."""
        self._ready.result()
        self._matcher.rollback(count)
        self._ready = self._pool.submit(self._compute)

    def _compute(self) -> None:
        if self._matcher.is_error():
            self._words.fill(0)
        else:
            self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)


class GuidanceCompiler:
    """Makes constraints over one vocabulary. Raises UsageError when the extra [grammar] is not installed."""

    def __init__(self, tokenizer: Vocabulary, vocab_size: int) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise UsageError("grammars need the package llguidance: pip install exllama[grammar]") from error
        self._library = llguidance
        self._num_words = -(-vocab_size // 32)
        wrapper = llguidance.TokenizerWrapper(_Tokens(tokenizer, vocab_size))
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=list(tokenizer.eos_ids))
        self._matchers: OrderedDict[tuple[Grammar, str], Any] = (
            OrderedDict()
        )  # in their first state, least recently used first
        self._pool = ThreadPoolExecutor(1, "exllama-grammar")

    def compile(self, grammars: list[Grammar], before: str = "") -> Constraint:
        """The beginning of an answer that follows all grammars, each after the text `before`.

        Raises UsageError with the place where a grammar is wrong.
        """
        made = [GuidanceConstraint(self._matcher(each, before), self._num_words, self._pool) for each in grammars]
        return made[0] if len(made) == 1 else AllOf(made)

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown()

    def _matcher(self, grammar: Grammar, before: str) -> Any:
        key = (grammar, before)
        if key not in self._matchers:
            matcher, error = self._try(grammar, before)
            if error:
                where = f" at {self._pointer(grammar)}" if grammar.kind == "json_schema" else ""
                raise UsageError(f"the {grammar.kind} of the job is wrong{where}: {error}")
            self._matchers[key] = matcher
            if len(self._matchers) > _KEPT:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(key)
        return self._matchers[key].deep_copy()

    def _try(self, grammar: Grammar, before: str = "") -> tuple[Any, str]:
        """(matcher, what is wrong or "")."""
        make = self._library.LLMatcher
        from_text = {
            "json_schema": lambda text: make.grammar_from_json_schema(text, defaults={"whitespace_flexible": False}),
            "regex": make.grammar_from_regex,
            "lark": make.grammar_from_lark,
        }[grammar.kind]
        matcher = make(self._tokenizer, _after(before, from_text(grammar.text)), log_level=0)
        return matcher, _first_line(matcher.get_error()) if matcher.is_error() else ""

    def _pointer(self, grammar: Grammar) -> str:
        """The JSON pointer of the innermost schema that does not compile by itself."""
        schema = json.loads(grammar.text)
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        pointer, inside = "#", True
        while inside:
            inside = False
            for step, part in _parts(schema):
                if self._try(Grammar("json_schema", json.dumps({**definitions, **part})))[1]:
                    pointer, schema, inside = pointer + step, part, True
                    break
        return pointer


class _Tokens:
    """A vocabulary as llguidance wants it."""

    def __init__(self, tokenizer: Vocabulary, vocab_size: int) -> None:
        self._encode = tokenizer.encode
        self.tokens = [tokenizer.id_to_piece(token) for token in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.control_ids, *tokenizer.eos_ids})
        self.eos_token_id = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
        self.bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._encode(plain, add_special_tokens=False)


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(step of a JSON pointer, schema inside) for every schema directly inside."""
    for key in _NAMED:
        if isinstance(schema.get(key), dict):
            for name, each in schema[key].items():
                if isinstance(each, dict):
                    yield f"/{key}/{name.replace('~', '~0').replace('/', '~1')}", each
    for key in _ONE:
        if isinstance(schema.get(key), dict):
            yield f"/{key}", schema[key]
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            yield from ((f"/{key}/{i}", each) for i, each in enumerate(schema[key]) if isinstance(each, dict))


def _after(before: str, grammar: str) -> str:
    """A grammar as llguidance reads it, Lark or a list in JSON, that begins with the text `before`."""
    if not before:
        return grammar
    inner = json.loads(grammar)["grammars"][0] if grammar.startswith("{") else {"lark_grammar": grammar}
    outer = {"lark_grammar": f"start: BEFORE @answer\nBEFORE: /{literal(before)}/"}
    return json.dumps({"grammars": [outer, {**inner, "name": "answer"}]})


def _first_line(text: str) -> str:
    return " ".join(text.split())[:300]
