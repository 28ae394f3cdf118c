"""Jobs with a negative prompt: two lanes, one answer, and nothing that runs beside them changes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exllama.errors import UsageError
from exllama.generator import Generator, Job, Sampling, Started
from exllama.generator.constraints import Grammar
from exllama.generator.lane import longest_answer
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sequence import Sequence
from tests.generator.drafters import Foresight, always, wrong_positions
from tests.generator.fake_model import VOCAB, logits_of, make
from tests.generator.oracle import answer_of, guided_answer
from tests.generator.test_scheduler import assert_right, finish, prompt_of

__all__ = ["always"]
NEW = 60
PAIRS = [(300, 20), (5, 256), (1, 1), (255, 511), (40, 3), (512, 513), (17, 300), (2, 255)]
WARM = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.2, seed=11)


def prompts(index: int) -> tuple[list[int], list[int]]:
    first, second = PAIRS[index]
    return prompt_of(first, index), prompt_of(second, 50 + index)


def job_for(index: int, sampling: Sampling = WARM, **more: Any) -> Job:
    prompt, negative = prompts(index)
    return Job(prompt, NEW, sampling, negative_prompt=negative, cfg_scale=1.5 + index / 4, **more)


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return [bytes(guided_answer(*prompts(i), 1.5 + i / 4, NEW, WARM)).decode() for i in range(len(PAIRS))]


def run(generator: Generator, jobs: list[Job]) -> list[str]:
    events = finish(generator, jobs)
    assert sum(isinstance(event, Started) for event in events) == len(jobs), "a lane is no job"
    assert all(job.finished is not None and job.finished.reason == "length" for job in jobs)
    return [job.text for job in jobs]


def test_answers_are_the_guided_ones(expected: list[str]) -> None:
    for index, text in enumerate(expected):
        assert run(make(batch=2)[0], [job_for(index)]) == [text]
        assert text != bytes(answer_of(prompts(index)[0], NEW, WARM)).decode(), "guidance changes nothing"


SHAPES: list[dict[str, int]] = [
    {},
    {"rows": 16},
    {"rows": 7, "batch": 7},
    {"pages": 7, "rows": 100},
    {"pages": 8, "batch": 3, "rows": 64},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batches_chunks_and_preemption(shape: dict[str, int], expected: list[str]) -> None:
    """Beside jobs without a negative prompt, and twice, so that the second round finds prefixes."""
    generator, _ = make(**shape)  # type: ignore[arg-type]
    for _ in range(2):
        alone = [Job(prompt_of(100 + i, i), NEW, WARM) for i in range(len(PAIRS))]
        guided = [job_for(i) for i in range(len(PAIRS))]
        texts = run(generator, [job for pair in zip(guided, alone, strict=True) for job in pair])
        assert texts[::2] == expected
        assert_right(*alone)
    assert sum(job.finished.cached_tokens for job in guided if job.finished) > 600 or "pages" in shape


class KnownAnswers(Foresight):
    """Guesses guided answers, and something else at a third of all positions."""

    def __init__(self, answers: list[str]) -> None:
        super().__init__(30, longest=5)
        self.answers = {tuple(prompts(i)[0]): prompts(i)[0] + list(text.encode()) for i, text in enumerate(answers)}

    def guess(self, sequence: Sequence, sampler: JobSampler, position: int) -> int:
        right = self.answers[tuple(sequence.job.prompt)][position]  # type: ignore[arg-type]
        return (right + 1) % VOCAB if wrong_positions(position, position + 1, self.wrong)[0] else right


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("pages", [64, 8])
def test_drafts_change_nothing(pages: int, expected: list[str]) -> None:
    generator, _ = make(pages=pages, drafter=KnownAnswers(expected))
    jobs = [job_for(i) for i in range(len(PAIRS))]
    assert run(generator, jobs) == expected
    assert sum(job.finished.accepted_drafts for job in jobs if job.finished) > 100
    assert sum(job.finished.rejected_drafts for job in jobs if job.finished) > 50


def test_together_with_a_grammar_and_what_is_wanted_of_tokens() -> None:
    job = job_for(
        1, Sampling(temperature=1.0, seed=5), grammars=[Grammar.regex("[a-f]*")], logprobs=1, return_logits=True
    )
    generator, _ = make()
    run(generator, [job])
    assert set(job.text) <= set("abcdef")
    assert job.finished is not None
    assert job.finished.logits is not None
    allowed = np.arange(ord("a"), ord("g"))
    own, other = (logits_of(prompt)[allowed] for prompt in prompts(1))
    led = other + np.float32(job.cfg_scale) * (own - other)
    assert np.array_equal(job.finished.logits[0].numpy()[allowed], led)


def test_a_fault_in_either_lane_ends_the_job_alone() -> None:
    prompt, negative = [5] * 30, [6] * 40
    for poison in ("poison", "unstorable"):
        for culprit in (prompt, negative):
            generator, runner = make()
            setattr(runner, poison, 99)
            bad = [*culprit[:-1], 99]
            pair = (bad, negative) if culprit is prompt else (prompt, bad)
            wrong, right = Job(pair[0], 9, negative_prompt=pair[1], cfg_scale=2.0), Job(prompt_of(9, 1), 9)
            finish(generator, [wrong, right])
            assert wrong.finished is not None
            assert wrong.finished.reason == "error"
            assert_right(right)


def test_cancelled_pairs_leave_nothing() -> None:
    generator, _ = make(pages=8, batch=5)
    for i in range(300):
        job = generator.enqueue(job_for(i % len(PAIRS)))
        for _ in range(i % 4):
            generator.step()
        generator.cancel(job)
        generator.check_integrity()
    assert generator._pool.num_available == 8


def test_a_pair_does_not_displace_for_nothing() -> None:
    """It needs two places: one of lower priority is not worth stopping."""
    generator, runner = make(batch=2)
    low, equal = generator.enqueue(Job("low", 50)), generator.enqueue(Job("equal", 50, priority=1))
    generator.step()
    pair = generator.enqueue(Job("pair", 5, negative_prompt="no", cfg_scale=2.0, priority=1))
    for _ in range(10):
        generator.step()
    assert runner.rows[1:] == [2] * 10
    finish(generator, [])
    assert all(job.finished is not None and job.finished.error is None for job in (low, equal, pair))


def test_longest_answer() -> None:
    for lengths in ([1], [300], [255, 1], [256, 256], [511, 40], [100, 513]):
        for pages in (1, 2, 3, 7):
            right = [n for n in range(1, 1000) if sum(-(-(p + n) // 256) for p in lengths) <= pages]
            right = [n for n in right if max(lengths) + n <= 600]
            assert max(longest_answer(lengths, 600, pages, 256), 0) == max(right, default=0)


def test_the_answer_ends_where_pages_for_both_end() -> None:
    generator, _ = make(pages=3)
    job = Job(prompt_of(200, 1), None, negative_prompt=prompt_of(10, 2), cfg_scale=2.0)
    finish(generator, [job])
    assert job.finished is not None
    assert (job.finished.reason, job.finished.new_tokens) == ("context", 246)


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"cfg_scale": 2.0}, {"negative_prompt": "no"}):
        with pytest.raises(UsageError, match="expected both a negative_prompt and a cfg_scale"):
            Job("yes", **wrong)  # type: ignore[arg-type]
    for scale in (float("nan"), float("inf"), True, 1001, "2"):
        with pytest.raises(UsageError, match="cfg_scale is"):
            Job("yes", negative_prompt="no", cfg_scale=scale)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_batch_size"):
        make(batch=1)[0].enqueue(Job("yes", negative_prompt="no", cfg_scale=2.0))
    with pytest.raises(UsageError, match="raise cache_tokens"):
        make(pages=2)[0].enqueue(Job(prompt_of(300, 1), negative_prompt=prompt_of(200, 1), cfg_scale=2.0))
    with pytest.raises(UsageError, match="has no tokens"):
        make()[0].enqueue(Job("yes", negative_prompt="", cfg_scale=2.0))
