"""Banned strings: what was drawn of them is taken back, and nothing of it is ever seen."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exllama.cache.page_table import PageTable
from exllama.errors import ConstraintError, UsageError
from exllama.generator import Generator, Job, Sampling, Text
from exllama.generator.answer import Answer
from exllama.generator.constraints import Grammar
from exllama.generator.drafting.ngram import NgramDrafter
from exllama.tokenizer.detokenizer import IncrementalDetokenizer
from tests.generator.drafters import Foresight, always
from tests.generator.fake_model import make
from tests.generator.oracle import answer_without
from tests.generator.test_constraints import SCHEMA
from tests.generator.test_scheduler import finish, prompt_of

__all__ = ["always"]
NEW = 90
BANNED = [a + b for a in "abcdefghij012345" for b in "klmnopqrstuvwxyz6789"] + ["a!", "!!", "kkK", "Q#R", "q#$%", '"']
WARM = Sampling(temperature=0.9, top_k=60, seed=5)
PROMPTS = [
    prompt_of(n, seed) for n, seed in ((5, 0), (250, 6), (250, 50), (250, 113), (500, 4))
]  # three cross a page at a banned string


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return [answer_without(prompt, NEW, WARM, BANNED) for prompt in PROMPTS]


def answers(generator: Generator, **more: Any) -> list[str]:
    jobs = [Job(prompt, NEW, WARM, banned_strings=BANNED, **more) for prompt in PROMPTS]
    events = finish(generator, jobs)
    for job in jobs:
        pieces = [event for event in events if isinstance(event, Text) and event.job is job]
        assert "".join(piece.text for piece in pieces) == job.text, "text was taken back that had been shown"
        assert bytes(token for piece in pieces for token in piece.token_ids).decode() == job.text
        assert job.finished is not None
        assert job.finished.new_tokens == NEW
    return [job.text for job in jobs]


SHAPES: list[dict[str, int]] = [{}, {"rows": 16}, {"batch": 1}, {"pages": 5, "rows": 64}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers_are_right_in_every_company(
    shape: dict[str, int], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    cut = PageTable.cut

    def counted(table: PageTable, num_tokens: int) -> int:
        computed = cut(table, num_tokens)
        given_back.append(num_tokens - 1 - computed)
        return computed

    monkeypatch.setattr(PageTable, "cut", counted)
    assert answers(make(**shape)[0]) == expected  # type: ignore[arg-type]
    assert len(given_back) > 20
    assert any(given_back), "no page that others could have found was given back"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("drafter", [lambda: Foresight(30), NgramDrafter], ids=["foresight", "ngram"])
def test_drafts_change_nothing(drafter: Any, expected: list[str]) -> None:
    assert answers(make(pages=6, drafter=drafter())[0]) == expected


def test_what_is_told_of_tokens_is_told_of_those_that_stay(expected: list[str]) -> None:
    job = Job(PROMPTS[3], NEW, WARM, banned_strings=BANNED, logprobs=0, return_logits=True)
    events = finish(make()[0], [job])
    assert job.text == expected[3]
    assert job.finished is not None
    told = [each.token_id for event in events if isinstance(event, Text) for each in event.logprobs]
    assert bytes(told).decode() == job.text
    assert [each.token_id for each in job.finished.logprobs] == told
    assert job.finished.logits is not None
    assert len(job.finished.logits) == NEW


def test_with_feedback_samplers_and_guidance() -> None:
    sampling = Sampling(mirostat_mode=2, mirostat_tau=4.0, seed=8)
    alone = Job(PROMPTS[2], NEW, sampling, banned_strings=BANNED)
    finish(make()[0], [alone])
    assert alone.text == answer_without(PROMPTS[2], NEW, sampling, BANNED)

    def guided() -> Job:
        return Job(PROMPTS[2], NEW, WARM, banned_strings=BANNED, negative_prompt=PROMPTS[3], cfg_scale=1.5)

    jobs = [guided(), guided()]
    finish(make(batch=2)[0], jobs[:1])
    finish(make(pages=5, rows=20)[0], [jobs[1], Job(PROMPTS[4], 90)])
    assert jobs[0].text == jobs[1].text
    assert not any(text.lower() in jobs[0].text.lower() for text in BANNED)


def test_together_with_a_schema_a_prefix_stops_and_healing() -> None:
    grammars = [Grammar.json_schema(SCHEMA), Grammar.prefix('{"name":"q')]
    banned = ["1", "zZ", "Red", "w"]
    wishes: dict[str, Any] = {"grammars": grammars, "banned_strings": banned, "stop": ["never"], "token_healing": True}
    for drafter in (None, NgramDrafter()):
        generator, _ = make(ends=True, pages=128, drafter=drafter)
        jobs = [Job("JSON:", 900, Sampling(temperature=1.0, seed=seed), **wishes) for seed in range(8)]
        finish(generator, jobs)
        for job in jobs:
            jsonschema.validate(json.loads(job.text), SCHEMA)
            assert job.text.startswith('{"name":"q')
            assert not any(text.lower() in job.text.lower() for text in banned)


def test_when_nothing_else_can_come_the_job_ends_alone() -> None:
    generator, _ = make(ends=True)
    jobs = [Job("a", 50, grammars=[Grammar.choices(["yes"])], banned_strings=["YES"]), Job("b", 20, WARM)]
    finish(generator, jobs)
    first, second = (job.finished for job in jobs)
    assert first is not None
    assert isinstance(first.error, ConstraintError)
    assert "beginning of a banned string" in str(first.error)
    assert first.text == ""
    assert second is not None
    assert second.error is None


PIECES = ["a", "b", "A", "ab", "bA", "", "x", "ba", "é", "\u20ac"]


class Pieces:
    """A tokenizer of such pieces, and of the bytes of the last ones alone."""

    control_ids = frozenset([5])
    tokens = (*(piece.encode() for piece in PIECES), b"\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac", b"\xc3\x89a")

    def id_to_piece(self, token_id: int) -> bytes:
        return self.tokens[token_id]


@given(
    st.lists(st.integers(0, len(Pieces.tokens) - 1), max_size=24),
    st.sampled_from([["ab"], ["aba", "bb"], ["É"], ["x€a", "ba"], ["é€"]]),
    st.sampled_from([[], ["xx"], ["ax"]]),
)
def test_answer_takes_back_what_was_never_shown(drawn: list[int], banned: list[str], stops: list[str]) -> None:
    answer = Answer(IncrementalDetokenizer(Pieces()), stops, banned=banned)  # type: ignore[arg-type]
    kept: list[int] = []
    shown, told = "", []
    for token in drawn:
        kept.append(token)
        piece, ids = answer.add(token)
        shown, told = shown + piece, [*told, *ids]
        if answer.taken_back:
            assert piece == ""
            assert answer.banned_token == kept[-answer.taken_back]
            del kept[-answer.taken_back :]
        assert told == kept[: len(told)], "a token was told that does not stay"
        whole = b"".join(Pieces.tokens[each] for each in kept).decode(errors="replace")
        assert not any(text.casefold() in whole.casefold() for text in banned)
        if answer.stop:
            break
    else:
        piece, ids = answer.finish()
        shown, told = shown + piece, [*told, *ids]
        assert told == kept
    whole = b"".join(Pieces.tokens[each] for each in kept).decode(errors="replace")
    assert shown == answer.text == (whole[: whole.index(answer.stop)] if answer.stop else whole)


def test_text_waits_no_longer_than_it_must() -> None:
    answer = Answer(IncrementalDetokenizer(Pieces()), [], banned=["abab"])  # type: ignore[arg-type]
    x, a, ab, big_a = PIECES.index("x"), PIECES.index("a"), PIECES.index("ab"), PIECES.index("A")
    assert answer.add(x) == ("x", (x,))
    assert answer.add(ab) == ("", ())
    assert answer.add(a) == ("", ())
    assert answer.add(a) == ("", ()), "this one may be taken back, and another one come"
    assert answer.add(x) == ("abaax", (ab, a, a, x))
    assert answer.add(big_a) == ("", ())
    assert answer.finish() == ("A", (big_a,))


@pytest.mark.parametrize("wrong", ["text", [""], [1], ["x"] * 5000])
def test_what_cannot_be_banned_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="banned_strings"):
        Job("p", banned_strings=wrong)
