"""Answers that follow grammars. The model draws noise, so nothing but the mask keeps it on the path."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import jsonschema
import numpy as np
import pytest

from exllama.errors import ConstraintError, UsageError
from exllama.generator import Generator, Job, Sampling
from exllama.generator.constraints import Grammar
from exllama.generator.constraints.constraint import apply_mask
from exllama.generator.constraints.guidance import GuidanceCompiler
from exllama.generator.drafting.ngram import NgramDrafter
from tests.generator.fake_model import VOCAB, FakeTokenizer, make

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 4},
        "address": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/address"}]},
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
    "$defs": {"address": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                          "required": ["zip"], "additionalProperties": False}},
}  # fmt: skip
LARK = 'start: item ("," item)*\nitem: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,3}/'
SAMPLING = Sampling(temperature=1.0, seed=3)


def finish(generator: Generator, jobs: list[Job]) -> list[str]:
    for job in jobs:
        generator.enqueue(job)
    while generator.active:
        generator.step()
        generator.check_integrity()
    return [job.text for job in jobs]


def job_for(grammar: Grammar, seed: int = 3, **more: Any) -> Job:
    return Job(f"prompt {seed}", 900, Sampling(temperature=1.0, seed=seed), grammars=[grammar], **more)


@pytest.fixture
def generator() -> Generator:
    return make(ends=True, pages=128)[0]


def test_json_follows_its_schema(generator: Generator) -> None:
    jobs = [job_for(Grammar.json_schema(SCHEMA), seed) for seed in range(12)]
    texts = finish(generator, jobs)
    for text, job in zip(texts, jobs, strict=True):
        jsonschema.validate(json.loads(text), SCHEMA)
        assert job.finished is not None
        assert job.finished.reason == "stop_token"
    assert len(set(texts)) == 12


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar.regex("[a-f]{3}-[0-9]{2,4}"), "[a-f]{3}-[0-9]{2,4}"),
        (Grammar.choices(["yes", "no", "may(be", "a/b|c"]), r"yes|no|may\(be|a/b\|c"),
        (Grammar.lark(LARK), r"[0-9(),]+"),
    ],
    ids=["regex", "choices", "lark"],
)
def test_texts_match(grammar: Grammar, pattern: str, generator: Generator) -> None:
    for text in finish(generator, [job_for(grammar, seed) for seed in range(8)]):
        assert re.fullmatch(pattern, text), text


def test_lark_brackets_are_balanced(generator: Generator) -> None:
    for text in finish(generator, [job_for(Grammar.lark(LARK), seed, min_new_tokens=0) for seed in range(20, 40)]):
        depth = [text[:i].count("(") - text[:i].count(")") for i in range(len(text) + 1)]
        assert min(depth) >= 0 == depth[-1], text


def test_prefix(generator: Generator) -> None:
    texts = finish(generator, [job_for(Grammar.prefix("Well, (so)"), seed) for seed in range(6)])
    assert all(text.startswith("Well, (so)") for text in texts)
    assert any(len(text) > len("Well, (so)") for text in texts)


def test_without_never_allows_a_text() -> None:
    """With pairs of letters banned that a noisy model cannot help drawing."""
    banned = [a + b for a in "abcdefgh" for b in "abcdefghijklmnopqrstuvwxyz/\n"] + ["x" * 40]
    prompts = [f"some text {i}" for i in range(4)]
    free, _ = make(pages=64)
    texts = finish(free, [Job(prompt, 600, SAMPLING) for prompt in prompts])
    assert all(any(text in answer for text in banned) for answer in texts), "the test would see nothing"
    generator, _ = make(pages=64)
    jobs = [Job(prompt, 600, SAMPLING, grammars=[Grammar.without(banned)]) for prompt in prompts]
    for answer in finish(generator, jobs):
        assert len(answer) == 600
        assert not any(text in answer for text in banned)


def test_schema_prefix_and_banned_strings_in_one_job(generator: Generator) -> None:
    grammars = [Grammar.json_schema(SCHEMA), Grammar.prefix('{"name":"q')]
    jobs = [
        Job("p", 900, Sampling(temperature=1.0, seed=seed), grammars=grammars, banned_strings=["1", "zz"])
        for seed in range(8)
    ]
    for text in finish(generator, jobs):
        jsonschema.validate(json.loads(text), SCHEMA)
        assert text.startswith('{"name":"q')
        assert not any(banned in text for banned in ("1", "zz"))


def test_company_preemption_and_drafts_change_nothing() -> None:
    """Alone, in a batch on too few pages, with drafts that are mostly wrong: the same answers."""
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "integer"}, "minItems": 200, "maxItems": 260})

    def jobs() -> list[Job]:
        return [Job(f"{i}", 800, Sampling(temperature=1.0, seed=i), grammars=[grammar]) for i in range(5)]

    alone = [finish(make(ends=True, batch=1)[0], [job])[0] for job in jobs()]
    assert len(set(alone)) == 5
    assert finish(make(ends=True, pages=9, batch=5)[0], jobs()) == alone
    drafted = jobs()
    assert finish(make(ends=True, drafter=NgramDrafter())[0], drafted) == alone


def test_a_grammar_with_no_way_on_ends_its_job_alone() -> None:
    generator, _ = make(ends=True)
    impossible = Job("a", 50, SAMPLING, grammars=[Grammar.regex("a+"), Grammar.regex("b+")])
    fine = Job("b", 20, SAMPLING)
    finish(generator, [impossible, fine])
    assert impossible.finished is not None
    assert isinstance(impossible.finished.error, ConstraintError)
    assert "no token continues" in str(impossible.finished.error)
    assert fine.finished is not None
    assert fine.finished.error is None


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "strin"}, "at #: "),
        ({"properties": {"a": {"properties": {"b/c": {"type": "strin"}}}}}, "#/properties/a/properties/b~1c: "),
        ({"properties": {"a": {"items": {"anyOf": [{"type": "null"}, {"pattern": "("}]}}}},
         "#/properties/a/items/anyOf/1: "),
        ({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"y": {}}}, "#/properties/a: "),
        ({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"minimum": "q"}}}, "#/$defs/x: "),
    ],
)  # fmt: skip
def test_a_bad_schema_is_an_error_with_its_pointer(schema: dict[str, Any], pointer: str, generator: Generator) -> None:
    """S13: the message says where in the schema."""
    with pytest.raises(UsageError, match=re.escape(pointer)):
        generator.enqueue(job_for(Grammar.json_schema(schema)))
    assert not generator.active


@pytest.mark.parametrize("grammar", [Grammar.regex("("), Grammar.lark('start: "a" foo'), Grammar.lark("x: 1")])
def test_a_bad_grammar_is_an_error(grammar: Grammar, generator: Generator) -> None:
    with pytest.raises(UsageError, match=f"the {grammar.kind} of the job is wrong"):
        generator.enqueue(job_for(grammar))


@pytest.mark.parametrize("wrong", [
    lambda: Grammar.json_schema("{"), lambda: Grammar.json_schema("[]"), lambda: Grammar.json_schema({"a": {1, 2}}),
    lambda: Grammar.regex(""), lambda: Grammar.choices([]), lambda: Grammar.choices("yes"),
    lambda: Grammar.without([""]), lambda: Grammar.lark("x" * (5 << 20)), lambda: Job("p", grammars=["a"]),  # type: ignore[list-item]
])  # fmt: skip
def test_what_is_no_grammar_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong()


def tools(count: int) -> dict[str, Any]:
    """A schema of many tools, as agents send them."""
    parameter = {"type": "string", "description": "x" * 60, "maxLength": 65536}
    return {"anyOf": [
        {"type": "object", "properties": {
            "name": {"const": f"tool{i}"},
            "arguments": {"type": "object", "properties": {f"p{j}": parameter for j in range(10)}, "required": ["p1"]},
        }, "required": ["name", "arguments"]} for i in range(count)
    ]}  # fmt: skip


def test_large_schemas_compile() -> None:
    """S13: limits do not hit what people use."""
    compiler = GuidanceCompiler(FakeTokenizer(), VOCAB)
    large = json.dumps(tools(100))
    assert len(large) > 100_000
    for schema in (large, json.dumps({"type": "string", "maxLength": 65536})):
        start = time.process_time()
        mask = compiler.compile([Grammar.json_schema(schema)]).mask()
        assert time.process_time() - start < 20
        assert mask.any()
    compiler.close()


def test_compiled_grammars_are_bounded() -> None:
    """S13: a flood of different schemas fills no memory."""
    compiler = GuidanceCompiler(FakeTokenizer(), VOCAB)
    for i in range(200):
        compiler.compile([Grammar.regex(f"a{{{i + 1}}}")])
    assert len(compiler._matchers) == 64
    compiler.close()


def test_rollback_brings_back_every_mask() -> None:
    compiler = GuidanceCompiler(FakeTokenizer(), VOCAB)
    constraint = compiler.compile([Grammar.json_schema(SCHEMA), Grammar.without(["gre"])])
    masks, text = [constraint.mask().copy()], b'{"name":"ab","age":7,"tags":["blue"'
    for token in text:
        assert masks[-1].view(np.uint8)[token // 8] >> (token % 8) & 1
        constraint.accept(token)
        masks.append(constraint.mask().copy())
    choose = random.Random(1)
    at = len(text)
    for _ in range(60):
        to = choose.randrange(at + 1)
        constraint.rollback(at - to)
        assert np.array_equal(constraint.mask(), masks[to])
        at = choose.randrange(to, len(text) + 1)
        for token in text[to:at]:
            constraint.accept(token)
        assert np.array_equal(constraint.mask(), masks[at])
    compiler.close()


def test_apply_mask() -> None:
    logits = np.arange(70, dtype=np.float32)
    words = np.array([0b101, 1 << 31, 1 << 5], np.uint32)
    apply_mask(logits, words)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [0, 2, 63, 69]
