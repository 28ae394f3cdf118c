"""The generator's surface, on a fake model that says what every answer must be."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import pytest
import torch

from exllama.errors import ContextError, NumericsError, UsageError
from exllama.generator import Event, Finished, Generator, Job, Prefill, Sampling, Started, Text
from tests.generator.fake_model import make
from tests.generator.oracle import answer_of

SAMPLED = Sampling(temperature=0.9, top_k=30, top_p=0.95, repetition_penalty=1.1, repetition_range=20, seed=11)


def finish(generator: Generator, *jobs: Job) -> list[Event]:
    """Runs until nothing is active, checking the invariants after every step."""
    for job in jobs:
        generator.enqueue(job)
    events: list[Event] = []
    while generator.active:
        events += generator.step()
        generator.check_integrity()
    return events


def tokens_of(events: list[Event], job: Job) -> list[int]:
    return [token for event in events if isinstance(event, Text) and event.job is job for token in event.token_ids]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), SAMPLED], ids=["greedy", "sampled"])
def test_one_answer(sampling: Sampling) -> None:
    generator, _ = make()
    expected = answer_of(list(b"hello"), 40, sampling)
    job = Job("hello", max_new_tokens=40, sampling=sampling)
    events = finish(generator, job)
    assert tokens_of(events, job) == expected
    assert [type(event) for event in events] == [Started, *[Text] * 40, Finished]
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.text, end.reason) == (bytes(expected).decode(), "length")
    assert (end.prompt_tokens, end.new_tokens, end.cached_tokens) == (5, 40, 0)
    assert (end.accepted_drafts, end.rejected_drafts, end.error) == (0, 0, None)
    assert min(end.times.queued, end.times.prefill, end.times.decode) >= 0
    assert end.times.decode > 0
    assert job.finished is end
    assert generator.generate("hello", 40, sampling) == end.text


def test_default_is_greedy() -> None:
    generator, _ = make()
    assert list(generator.generate("hello", 9).encode()) == answer_of(list(b"hello"), 9)


def test_many_answers_in_one_batch() -> None:
    generator, runner = make(batch=4)
    prompts = [f"prompt number {i}" * (i + 1) for i in range(9)]
    assert generator.generate(prompts, 30, SAMPLED) == [
        bytes(answer_of(list(p.encode()), 30, SAMPLED)).decode() for p in prompts
    ]
    assert 4 in runner.rows
    generator.check_integrity()


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_prompts_of_token_ids(kind: Any) -> None:
    generator, _ = make()
    assert generator.generate(kind([104, 105]), 5) == generator.generate("hi", 5)
    assert generator.generate([[104, 105], "hi"], 5) == [generator.generate("hi", 5)] * 2


def test_stream_is_the_same_text_and_tells_how_it_went() -> None:
    generator, _ = make()
    job = Job("hello", max_new_tokens=20)
    pieces = list(generator.stream(job))
    assert all(isinstance(piece, Text) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == generator.generate("hello", 20) == job.text
    assert job.finished is not None
    assert not generator.active


def test_a_closed_stream_is_cancelled() -> None:
    generator, _ = make()
    job = Job("hello", max_new_tokens=None)
    stream = generator.stream(job)
    next(stream)
    stream.close()
    assert job.finished is not None
    assert job.finished.reason == "cancelled"
    assert not generator.active
    generator.check_integrity()


def test_a_stream_leaves_other_jobs_events_alone() -> None:
    generator, _ = make()
    other = generator.enqueue(Job("other", max_new_tokens=5))
    list(generator.stream("hello", 20))
    events: list[Event] = []
    while generator.active:
        events += generator.step()
    assert {event.job for event in events} == {other}
    assert tokens_of(events, other) == answer_of(list(b"other"), 5)
    assert isinstance(events[-1], Finished)


def test_chat_uses_the_template() -> None:
    generator, _ = make()
    generator.tokenizer.encode_chat = lambda messages: list(messages[0]["content"].encode())  # type: ignore[method-assign]
    assert generator.chat([{"role": "user", "content": "hello"}], 7) == generator.generate("hello", 7)


def test_long_prompts_report_progress() -> None:
    generator, _ = make(rows=100, batch=1)
    events = finish(generator, Job([7] * 350, max_new_tokens=1))
    assert [event.done for event in events if isinstance(event, Prefill)] == [100, 200, 300]
    assert {event.total for event in events if isinstance(event, Prefill)} == {350}


def test_length_is_exact() -> None:
    generator, _ = make()
    for n in (1, 2, 255, 256, 257):
        job = Job("hello", max_new_tokens=n)
        assert len(tokens_of(finish(generator, job), job)) == n


def test_answers_end_where_the_context_does() -> None:
    generator, _ = make(pages=2, context=400)
    assert (generator.context_length, generator.cache_tokens) == (400, 512)
    job = Job([5] * 390, max_new_tokens=None)
    events = finish(generator, job)
    assert (job.finished.reason, job.finished.new_tokens) == ("context", 10)
    assert tokens_of(events, job) == answer_of([5] * 390, 10)
    job = Job([5] * 399, max_new_tokens=5)
    finish(generator, job)
    assert (job.finished.reason, job.finished.new_tokens) == ("context", 1)
    job = Job([5] * 390, max_new_tokens=10)
    finish(generator, job)
    assert job.finished.reason == "length"


@pytest.mark.parametrize(("context", "limit", "what"), [(400, 400, "context"), (8192, 512, "cache")])
def test_a_prompt_that_cannot_fit_is_refused_with_counts(context: int, limit: int, what: str) -> None:
    """R14: never cut in silence."""
    generator, runner = make(pages=2, context=context)
    message = f"has {limit} tokens, but the {what} holds {limit}.*shorten the prompt by 1 "
    with pytest.raises(ContextError, match=message) as e:
        generator.enqueue(Job([5] * limit))
    assert (e.value.prompt_tokens, e.value.limit) == (limit, limit)
    assert not generator.active
    with pytest.raises(ContextError):
        generator.generate(["short", [5] * 600], 5)
    assert not generator.active
    assert runner.rows == []
    generator.check_integrity()


@pytest.mark.parametrize("prompt", ["", [], [128], [-1], [1.5], [[1]], [True], ["a", 1], {}, b"a", None, 5, [2**70]])
def test_prompts_that_mean_nothing(prompt: Any) -> None:
    generator, _ = make()
    with pytest.raises(UsageError):
        generator.enqueue(Job(prompt))
    if not (isinstance(prompt, list) and prompt):  # a list of prompts has its own meaning for generate
        with pytest.raises(UsageError):
            generator.generate(prompt, 1)
    assert not generator.active


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("max_new_tokens", -1), ("max_new_tokens", True), ("max_new_tokens", 1.0),
     ("max_new_tokens", math.nan), ("seed", -1), ("seed", 2**64), ("seed", 1.0), ("sampling", {"top_k": 1}),
     ("salt", "x")],
)  # fmt: skip
def test_jobs_that_mean_nothing(name: str, value: Any) -> None:
    """S15: the numbers of a job."""
    with pytest.raises(UsageError, match=name):
        Job("x", **{name: value})


def test_a_job_is_enqueued_once() -> None:
    generator, _ = make()
    job = Job("x", max_new_tokens=2)
    finish(generator, job)
    with pytest.raises(UsageError, match="before"):
        generator.enqueue(job)


def test_seeds() -> None:
    generator, _ = make()

    def tokens(seed: int | None, sampling_seed: int | None) -> tuple[list[int], Job]:
        job = Job("hello", max_new_tokens=20, sampling=Sampling(seed=sampling_seed), seed=seed)
        return tokens_of(finish(generator, job), job), job

    expected = answer_of(list(b"hello"), 20, Sampling(seed=3))
    assert tokens(3, None)[0] == tokens(None, 3)[0] == tokens(3, 9)[0] == expected
    first, job = tokens(None, None)
    assert first != tokens(None, None)[0]
    assert tokens(job.seed, None)[0] == first


def test_jobs_may_share_settings() -> None:
    generator, _ = make()
    sampling, stop = Sampling(repetition_penalty=1.5, seed=5), ["zz"]
    jobs = [Job(f"prompt {i}", 30, sampling, stop) for i in range(4)]
    events = finish(generator, *jobs)
    for i, job in enumerate(jobs):
        assert tokens_of(events, job) == answer_of(list(f"prompt {i}".encode()), 30, sampling)
    assert (sampling, stop) == (Sampling(repetition_penalty=1.5, seed=5), ["zz"])


def test_cancel_frees_pages_and_can_be_repeated() -> None:
    """R02: cancelling is idempotent."""
    generator, _ = make(pages=8, batch=2)
    jobs = [generator.enqueue(Job([i + 3] * 600, max_new_tokens=None)) for i in range(4)]
    generator.step()
    available = generator._pool.num_available
    assert available < 8
    for job in (jobs[0], jobs[3]):
        generator.cancel(job)
        generator.cancel(job)
        generator.check_integrity()
    assert generator._pool.num_available > available
    events = [event for event in generator.step() if isinstance(event, Finished)]
    assert [(event.job, event.reason) for event in events] == [(jobs[0], "cancelled"), (jobs[3], "cancelled")]
    for job in jobs:
        generator.cancel(job)
        generator.cancel(job)
    assert [e.job for e in generator.step() if isinstance(e, Finished)] == [jobs[1], jobs[2]]
    assert not generator.active
    assert generator._pool.num_available == 8
    generator.cancel(Job("never enqueued"))


def test_ten_thousand_cancelled_jobs_leak_nothing() -> None:
    """R01: pages are free within a step of the cancellation, whatever the state of the job."""
    generator, _ = make(pages=16, batch=4, rows=64)
    choose = random.Random(0)
    live: list[Job] = []
    for i in range(10_000):
        job = generator.enqueue(Job([choose.randrange(3, 128)] * choose.choice([1, 3, 40, 300]), max_new_tokens=50))
        live.append(job)
        if i % 4 == 0:
            generator.step()
        if len(live) > 3:
            generator.cancel(live.pop(choose.randrange(len(live))))
        if i % 100 == 0:
            generator.check_integrity()
    for job in live:
        generator.cancel(job)
    while generator.active:
        generator.step()
    generator.check_integrity()
    assert generator._pool.num_available == 16
    assert not generator._sequences
    assert not generator._mailboxes


def test_no_numbers_end_one_job_and_not_the_others() -> None:
    """R05: NaN is an error of its job, not token 0."""
    generator, runner = make()
    expected = generator.generate(["good one", "good two"], 60)
    poison = next(t for t in range(3, 128) if chr(t) not in "".join(expected) + "good one two")
    runner.poison = poison
    jobs = [Job("good one", 60), Job([104, 105, poison], 60), Job("good two", 60)]
    finish(generator, *jobs)
    assert [job.finished.reason for job in jobs] == ["length", "error", "length"]
    assert [jobs[0].text, jobs[2].text] == expected
    assert isinstance(jobs[1].finished.error, NumericsError)
    assert "position 2" in str(jobs[1].finished.error)
    with pytest.raises(NumericsError):
        generator.generate(["good one", [poison]], 5)
    assert not generator.active
    generator.check_integrity()


def test_pages_of_a_failed_job_are_not_found_again() -> None:
    generator, runner = make()
    prompt = [9] * 700 + [10]
    runner.poison = 10
    with pytest.raises(NumericsError):
        generator.generate(prompt, 5)
    runner.poison = None
    job = Job(prompt, 5)
    finish(generator, job)
    assert job.finished.cached_tokens == 0


def test_keys_that_cannot_be_stored_end_one_job_wherever_they_stand() -> None:
    """In the middle of a prompt that is read in chunks, and in a token that was drawn."""
    generator, runner = make(rows=64)
    expected = generator.generate(["good one", "good two", "go"], 60)
    runner.unstorable = next(t for t in range(3, 128) if chr(t) not in "".join(expected[:2]) + "good one two")
    long = [104] * 500 + [runner.unstorable] + [105] * 500
    jobs = [Job("good one", 60), Job(long, 60), Job("good two", 60)]
    finish(generator, *jobs)
    assert [job.finished.reason for job in jobs] == ["length", "error", "length"]
    assert [jobs[0].text, jobs[2].text] == expected[:2]
    error = jobs[1].finished.error
    assert isinstance(error, NumericsError)
    assert "layer 7 at position 500" in str(error)
    generator.check_integrity()
    drawn = ord(expected[2][10])
    assert chr(drawn) not in "go" + expected[2][:10]
    runner.unstorable = drawn
    with pytest.raises(NumericsError, match="layer 7 at position 12"):
        generator.generate("go", 60)
    runner.unstorable = None
    again = Job(long, 5)
    finish(generator, again)
    assert again.finished.cached_tokens == 0  # nobody finds the pages of the job that failed


def test_a_failing_runner_leaves_a_generator_that_can_go_on() -> None:
    """R05: out of memory in a step."""
    generator, runner = make()
    job = generator.enqueue(Job("hello", max_new_tokens=20))
    generator.step()
    runner.fail = True
    for _ in range(3):
        with pytest.raises(MemoryError):
            generator.step()
        generator.check_integrity()
    runner.fail = False
    while generator.active:
        generator.step()
    assert list(job.text.encode()) == answer_of(list(b"hello"), 20)


def test_close() -> None:
    generator, _ = make()
    with generator:
        job = generator.enqueue(Job("hello"))
        generator.step()
    assert job.finished is not None
    assert job.finished.reason == "cancelled"
    generator.close()
    assert generator.model.closed == 1  # type: ignore[attr-defined]
    for call in (lambda: generator.enqueue(Job("x")), generator.step, lambda: generator.generate("x")):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_idle_steps_are_harmless() -> None:
    generator, runner = make()
    assert generator.step() == []
    assert not generator.active
    assert runner.rows == []


def test_a_decode_step_costs_little_beside_the_model() -> None:
    """Scheduling, commit, text and events of one sequence: measured 13 us; 60 us are 5 % of the smallest model's step.

    The fastest tenth counts: the machine may be busy.
    """
    generator, runner = make(pages=16, batch=1)
    logits = torch.zeros((1, 128))
    logits[0, 65] = 1.0
    runner.forward = lambda batch: logits  # type: ignore[method-assign]
    generator.enqueue(Job("hello", max_new_tokens=None))
    seconds = []
    for _ in range(2000):
        begin = time.thread_time()
        generator.step()
        seconds.append(time.thread_time() - begin)
    assert sorted(seconds)[200] < 60e-6
