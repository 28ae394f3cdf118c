"""Token healing: the last token of a prompt is drawn anew, and what its text was is no part of the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exllama.errors import UsageError
from exllama.generator import Generator, Job, Sampling
from exllama.generator.answer import Answer
from exllama.generator.constraints import Grammar
from exllama.generator.constraints.guidance import GuidanceCompiler
from exllama.generator.healing import Healer
from exllama.tokenizer.detokenizer import IncrementalDetokenizer
from tests.generator.fake_model import VOCAB, make
from tests.generator.test_scheduler import finish

WARM = Sampling(temperature=1.0, seed=9)
WORDS = (
    b"<end>",
    b"http",
    b":",
    b"://",
    b":/",
    b"//",
    b"s",
    b"\xe2",
    b"{",
    b'{"',
    b" :",
    b"a",
    b'":',
    b"1",
    b"}",
    b'"',
)


OBJECT = {"type": "object", "properties": {"a": {"enum": [1, 11]}}, "required": ["a"], "additionalProperties": False}


class Words:
    """A vocabulary of WORDS, of which the first is a control token."""

    eos_ids: tuple[int, ...] = (0,)
    control_ids: frozenset[int] = frozenset([0])

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """The longest word first."""
        data, found = text.encode(), list[int]()
        while data:
            found.append(max((i for i, word in enumerate(WORDS) if data.startswith(word)), key=lambda i: len(WORDS[i])))
            data = data[len(WORDS[found[-1]]) :]
        return found

    def id_to_piece(self, token_id: int) -> bytes:
        return WORDS[token_id]


def ids(*words: bytes) -> np.ndarray:
    return np.array([WORDS.index(word) for word in words], np.int32)


def test_the_last_token_and_all_that_begin_with_its_text() -> None:
    healed = Healer(Words(), len(WORDS)).heal(ids(b"http", b":"))
    assert healed is not None
    assert healed.prompt.tolist() == ids(b"http").tolist()
    assert healed.text == ":"
    assert sorted(WORDS[token] for token in healed.first_ids) == [b":", b":/", b"://"]


@pytest.mark.parametrize("prompt", [(b":",), (b"http", b"<end>"), (b"http", b"\xe2")])
def test_nothing_to_mend(prompt: tuple[bytes, ...]) -> None:
    assert Healer(Words(), len(WORDS)).heal(ids(*prompt)) is None


def answer(*drawn: bytes, **wishes: Any) -> Answer:
    made = Answer(IncrementalDetokenizer(Words()), hidden=1, **wishes)  # type: ignore[arg-type]
    shown = "".join(made.add(WORDS.index(word))[0] for word in drawn)
    assert shown == made.text
    return made


def test_the_answer_begins_after_what_was_in_the_prompt() -> None:
    assert answer(b"://", b"a", stops=[]).text == "//a"
    assert answer(b":", b"a", stops=[]).text == "a"
    assert answer(b"://", b"a", b"s", stops=["s"]).text == "//a"
    assert answer(b":", b"a", stops=[":"]).stop is None, "a stop string in the prompt is none"


def test_what_is_hidden_stays_so_when_the_first_token_is_taken_back() -> None:
    made = answer(b"://", b"a", b":", b"a", b"a", stops=[], banned=["/a"])
    assert made.text == "aa"


def test_in_a_generator_it_is_the_shorter_prompt_with_a_first_token_given() -> None:
    """A token of the fake is a character, so the only one that begins with its text is itself."""
    plain, healed = Job("some text", 40, WARM), Job("some text", 40, WARM, token_healing=True)
    finish(make()[0], [plain])
    finish(make()[0], [healed, Job("beside", 30, WARM)])
    assert healed.finished is not None
    assert healed.finished.prompt_tokens == 8
    assert healed.text == plain.text[:39]


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (Grammar.regex('"{1,2}a'), '":"a'),
        (Grammar.choices(['://', "s"]), ":://"),
        (Grammar.lark('start: "a" "a"?'), ":aa"),
        (Grammar.json_schema(OBJECT), ':{"a":11}'),
    ],
    ids=["regex", "choices", "lark", "schema"],
)  # fmt: skip
def test_grammars_begin_after_the_hidden_text(grammar: Grammar, text: str) -> None:
    compiler = GuidanceCompiler(Words(), len(WORDS))
    before = '":' if text.startswith('":') else ":"
    constraint = compiler.compile([grammar], before)
    rest = text.encode()
    while rest:
        allowed = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")[: len(WORDS)]
        fitting = [token for token in np.flatnonzero(allowed) if rest.startswith(WORDS[token])]
        token = int(max(fitting, key=lambda token: len(WORDS[token])))
        constraint.accept(token)
        rest = rest[len(WORDS[token]) :]
    assert constraint.mask()[0] & 1, "the end is allowed"
    compiler.close()


def answers(generator: Generator, **more: Any) -> list[str]:
    jobs = [Job(f'{{"x{i}', 60, Sampling(temperature=1.0, seed=i), token_healing=True, **more) for i in range(4)]
    finish(generator, jobs)
    assert all(job.finished is not None and job.finished.error is None for job in jobs)
    return [job.text for job in jobs]


def test_with_a_grammar_banned_strings_and_company() -> None:
    wishes: dict[str, Any] = {"grammars": [Grammar.regex("[a-e]{50}")], "banned_strings": ["ab", "C", "dd"]}
    texts = answers(make(ends=True)[0], **wishes)
    assert all(len(text) == 50 and set(text) <= set("abde") for text in texts)
    assert not any(banned in text for text in texts for banned in ("ab", "dd"))
    assert answers(make(ends=True, pages=2, batch=2, rows=5)[0], **wishes) == texts


def test_a_negative_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="token_healing"):
        Job("a", token_healing=True, negative_prompt="b", cfg_scale=2.0)


def test_the_fake_has_one_token_per_character() -> None:
    healer = Healer(make()[0].tokenizer, VOCAB)
    healed = healer.heal(np.array(list(b"ab"), np.int32))
    assert healed is not None
    assert healed.first_ids == [ord("b")]
