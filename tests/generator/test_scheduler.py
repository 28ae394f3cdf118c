"""Who runs when: budget, sharing, preemption, fairness. Every answer is compared with what it must be."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exllama.generator import GREEDY, Event, Finished, Generator, Job, Prefill, Sampling, Started, Text
from exllama.generator.scheduler import MAX_SKIPS, share_budget
from exllama.ops import PAGE_SIZE
from tests.generator.fake_model import FakeRunner, make
from tests.generator.oracle import answer_of, answer_without, guided_answer

PAIRS = [a + b for a in "abcdefghij" for b in "klmnopqrstuvwxyz!#%&"]


def prompt_of(length: int, seed: int) -> list[int]:
    choose = random.Random(seed)
    return [choose.randrange(3, 128) for _ in range(length)]


def finish(generator: Generator, jobs: list[Job]) -> list[Event]:
    for job in jobs:
        generator.enqueue(job)
    events: list[Event] = []
    while generator.active:
        events += generator.step()
        generator.check_integrity()
    return events


def assert_right(*jobs: Job) -> None:
    for job in jobs:
        assert job.finished is not None
        assert job.finished.error is None
        expected = answer_of(list(job.prompt), job.finished.new_tokens, job.sampling)
        assert list(job.text.encode()) == expected


@pytest.mark.parametrize("rows", [1, 7, 64, 2048])
def test_chunking_changes_nothing(rows: int) -> None:
    generator, runner = make(rows=rows, batch=1)
    job = Job(prompt_of(700, 0), 20)
    finish(generator, [job])
    assert_right(job)
    assert max(runner.rows) == min(rows, 700)
    assert sum(runner.rows) == 700 + 19


def test_streams_never_wait_for_prompts() -> None:
    """While 20 long prompts arrive, a running stream gets a token in every step, and every step keeps its budget."""
    generator, runner = make(pages=512, rows=128)
    stream = generator.enqueue(Job("hello", max_new_tokens=200))
    generator.step()
    prompts = [generator.enqueue(Job(prompt_of(500, i), 3)) for i in range(20)]
    while stream.finished is None:
        assert any(isinstance(event, Text) and event.job is stream for event in generator.step())
    while generator.active:
        generator.step()
    assert max(runner.rows) == 128
    assert_right(*prompts)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    generator, _ = make(pages=512, rows=128)
    long = generator.enqueue(Job(prompt_of(4000, 0), 3))
    generator.step()
    short = generator.enqueue(Job(prompt_of(30, 1), 3))
    assert any(isinstance(event, Text) and event.job is short for event in generator.step())
    while generator.active:
        generator.step()
    assert_right(long, short)


def test_a_long_prompt_does_not_starve() -> None:
    generator, _ = make(pages=512, rows=128)
    long = generator.enqueue(Job(prompt_of(2000, 0), 1))
    steps = 0
    while long.finished is None:
        for i in range(3):
            generator.enqueue(Job(prompt_of(60, 100 + 3 * steps + i), 1))
        generator.step()
        steps += 1
    assert steps < 2000 / (128 / 4) + 2


@pytest.mark.parametrize(
    ("wanted", "budget", "expected"),
    [([], 9, []), ([5], 9, [5]), ([50], 9, [9]), ([100, 10, 20], 40, [10, 10, 20]), ([100, 10, 20], 80, [50, 10, 20]),
     ([10, 10, 10], 25, [10, 10, 5]), ([9, 9], 0, [0, 0]), ([9, 1], 1, [1, 0])],
)  # fmt: skip
def test_share_budget(wanted: list[int], budget: int, expected: list[int]) -> None:
    assert share_budget(wanted, budget) == expected


def test_equal_prompts_share_pages_and_work() -> None:
    generator, runner = make(pages=64, rows=4096)
    prompt = prompt_of(2000, 1)
    jobs = [Job([*prompt, 10 + i], 5) for i in range(16)]
    for job in jobs[:8]:
        generator.enqueue(job)
    generator.step()
    for job in jobs[8:]:
        generator.enqueue(job)
    while generator.active:
        generator.step()
        generator.check_integrity()
        used = generator._pool.num_pages - generator._pool.num_available
        assert used <= 7 + 16 + 8
    assert_right(*jobs)
    assert all(job.finished.cached_tokens >= 1792 for job in jobs[8:])
    assert sum(runner.rows) < 2 * 2000 + 16 * (1 + 208 + 5) + 200


def test_a_prefix_is_found_after_its_job_ended() -> None:
    generator, runner = make()
    prompt = prompt_of(2000, 2)
    first, again = Job(prompt, 5), Job(prompt, 5)
    finish(generator, [first])
    rows = sum(runner.rows)
    finish(generator, [again])
    assert again.finished.cached_tokens == 1999  # seven pages shared, the start of the eighth copied
    assert runner.cache.copies == 1
    assert sum(runner.rows) - rows == 1 + 4
    assert_right(first, again)


def test_the_next_turn_of_a_conversation_reuses_the_answer() -> None:
    generator, _ = make()
    prompt, job = prompt_of(300, 3), None
    for turn in range(4):
        job = Job(prompt, 40)
        finish(generator, [job])
        assert_right(job)
        if turn:
            assert job.finished.cached_tokens >= len(prompt) - 11
        prompt = prompt + list(job.text.encode()) + prompt_of(10, 4 + turn)


def test_salts_keep_prefixes_apart() -> None:
    """S17: what a tenant has cached makes no other tenant's request faster."""
    generator, _ = make()
    jobs = [Job(prompt_of(600, 5), 5, salt=salt) for salt in (b"", b"a", b"b", b"a")]
    for job in jobs:
        finish(generator, [job])
    assert [job.finished.cached_tokens > 0 for job in jobs] == [False, False, False, True]
    assert_right(*jobs)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, min_p=0.02, seed=4)], ids=["greedy", "sampled"])
def test_preemption_changes_nothing(sampling: Sampling) -> None:
    """16 answers of three pages each on a cache of eight pages."""
    generator, runner = make(pages=8, rows=256)
    jobs = [Job(prompt_of(10 + i, i), 700, sampling) for i in range(16)]
    events = finish(generator, jobs)
    assert_right(*jobs)
    assert all(job.finished.new_tokens == 700 for job in jobs)
    assert sum(runner.rows) > sum(10 + i + 699 for i in range(16)), "nothing was preempted"
    assert sum(isinstance(event, Started) for event in events) == 16


def test_hundred_jobs_that_may_grow_large_on_a_cache_for_four() -> None:
    """max_new_tokens reserves nothing: with 16 short answers at a time, nobody waits for pages."""
    generator, runner = make(pages=16, rows=256, ends=True, context=4096)
    jobs = [Job(f"prompt {i}", max_new_tokens=32_000) for i in range(100)]
    finish(generator, jobs)
    assert {job.finished.reason for job in jobs} == {"stop_token"}
    assert max(runner.rows[20:40]) >= 16


def test_the_first_is_not_preempted() -> None:
    generator, _ = make(pages=6, rows=256, batch=4)
    jobs = [Job(prompt_of(200, i), 900) for i in range(4)]
    finished = [event.job for event in finish(generator, jobs) if isinstance(event, Finished)]
    assert finished == jobs
    assert_right(*jobs)


def test_a_large_job_is_admitted_although_small_ones_keep_coming() -> None:
    generator, _ = make(pages=8, rows=2048, batch=4)
    small = [generator.enqueue(Job(prompt_of(200, i), 40)) for i in range(3)]
    generator.step()
    large = generator.enqueue(Job(prompt_of(7 * PAGE_SIZE, 99), 3))
    done = 0
    while large.finished is None:
        small.append(generator.enqueue(Job(prompt_of(200, 100 + len(small)), 40)))
        for event in generator.step():
            done += isinstance(event, Finished) and event.job is not large
        assert done <= MAX_SKIPS + 8
    assert_right(large)
    assert done > 0


def test_a_prompt_as_large_as_the_cache() -> None:
    generator, _ = make(pages=4, rows=300, batch=3)
    jobs = [Job(prompt_of(4 * PAGE_SIZE - 1, i), None) for i in range(3)] + [Job(prompt_of(5, 9), 300)]
    finish(generator, jobs)
    assert_right(*jobs)
    assert [job.finished.reason for job in jobs] == ["context"] * 3 + ["length"]


def test_prompts_that_together_outgrow_the_cache_while_they_are_computed() -> None:
    """Admitted one after the other, each when there was room; pages then run out with nobody drawing."""
    generator, _ = make(pages=5, rows=64, batch=4)
    jobs = [Job(prompt_of(500, i), 300) for i in range(6)]
    events = finish(generator, jobs)
    assert_right(*jobs)
    assert any(isinstance(event, Prefill) for event in events)


def test_pages_that_running_prompts_still_need_are_not_given_to_others() -> None:
    """Two prompts of seven pages on ten: the second waits, nothing is computed twice."""
    generator, runner = make(pages=10, rows=64, batch=4)
    jobs = [Job(prompt_of(7 * PAGE_SIZE - 50, i), 20) for i in range(2)]
    events = finish(generator, jobs)
    order = [(type(event), event.job) for event in events if isinstance(event, (Started, Finished))]
    assert order == [(kind, job) for job in jobs for kind in (Started, Finished)]
    assert sum(runner.rows) == sum(len(job.prompt) + 19 for job in jobs)


def test_threads_may_do_anything_at_once() -> None:
    """R02: cancelling races with finishing and with new jobs."""
    generator, _ = make(pages=12, rows=64, batch=6)
    wrong: list[Any] = []
    stop = threading.Event()

    def guarded(work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            wrong.append(error)

    def generate(seed: int) -> None:
        for i in range(6):
            prompt = prompt_of(100 + 40 * i, seed * 100 + i)
            assert list(generator.generate(prompt, 30).encode()) == answer_of(prompt, 30)

    def stream(seed: int) -> None:
        for i in range(6):
            prompt = prompt_of(20 + 90 * i, seed * 100 + i)
            events = generator.stream(prompt, 30)
            first = [next(events) for _ in range(10)]
            events.close()
            assert [t for event in first for t in event.token_ids] == answer_of(prompt, 10)

    def cancel(seed: int) -> None:
        for i in range(30):
            job = generator.enqueue(Job(prompt_of(50, seed * 100 + i), 500))
            generator.cancel(job)
            generator.cancel(job)

    def run() -> None:
        while not stop.is_set():
            generator.step()
            generator.check_integrity()

    work = [(generate, 1), (generate, 2), (stream, 3), (stream, 4), (cancel, 5), (cancel, 6)]
    threads = [threading.Thread(target=guarded, args=each) for each in work]
    runner = threading.Thread(target=guarded, args=(run,))
    for thread in [runner, *threads]:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    runner.join(60)
    assert wrong == []
    generator.step()
    generator.check_integrity()
    assert not generator.active
    assert generator._pool.num_available == 12


def expected_of(job: Job, count: int, complete: bool) -> list[int]:
    """The first tokens of its answer; complete: its limit ended it there."""
    prompt = list(job.prompt)
    if job.negative_prompt is not None:
        return guided_answer(prompt, list(job.negative_prompt), job.cfg_scale, count, job.sampling)
    if job.banned_strings:
        further = 0 if complete else 40  # tokens after these may have shown that one of them had to go
        return list(answer_without(prompt, count + further, job.sampling, list(job.banned_strings)).encode())[:count]
    return answer_of(prompt, count, job.sampling)


class Life(RuleBasedStateMachine):
    """Anything in any order, over few pages and few different tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.generator: Generator
        self.runner: FakeRunner
        self.generator, self.runner = self.make()
        self.jobs: list[Job] = []
        self.streams: dict[Job, list[int]] = {}

    def make(self) -> tuple[Generator, FakeRunner]:
        return make(pages=5, rows=96, batch=3)

    @rule(
        start=st.sampled_from([0, 1]), length=st.sampled_from([1, 90, 255, 256, 257, 511, 700]), more=st.integers(3, 5),
        new=st.sampled_from([1, 3, 200, None]), temperature=st.sampled_from([0.0, 1.0]),
        wishes=st.sampled_from([{}, {}, {"priority": 1}, {"priority": -1}, {"deadline": 0.02}, {"min_new_tokens": 1},
                                {"banned_strings": PAIRS}, {"negative_prompt": [3] * 250, "cfg_scale": 1.5}]),
    )  # fmt: skip
    def enqueue(
        self, start: int, length: int, more: int, new: int | None, temperature: float, wishes: dict[str, Any]
    ) -> None:
        if "negative_prompt" in wishes:
            length = min(length, 511)  # so that pages suffice for both prompts
        self.submit(Job([*prompt_of(length, start), more], new, Sampling(temperature, seed=more), **wishes))

    def submit(self, job: Job) -> None:
        self.jobs.append(self.generator.enqueue(job))
        self.streams[job] = []

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), more=st.integers(3, 5))
    def fork(self, data: st.DataObject, more: int) -> None:
        """Another job goes on from what one has so far."""
        job = data.draw(st.sampled_from(self.jobs))
        prompt = [*job.prompt, *self.streams[job]][: self.generator.context_length - 2]
        self.submit(Job([*prompt, more], 50, job.sampling))

    @rule()
    def evict(self) -> None:
        """Everything that nobody reads is forgotten."""
        pool = self.generator._pool
        taken = [pool.take() for _ in range(pool.num_available)]
        for page in taken:
            assert page is not None
            pool.release(page)
        assert pool.num_free == pool.num_available

    @rule(count=st.sampled_from([1, 5, 40]))
    def step(self, count: int) -> None:
        for _ in range(count):
            rows = len(self.runner.rows)
            working = bool(self.generator._sequences)
            events = self.generator.step()
            for event in events:
                if isinstance(event, Text):
                    self.streams[event.job] += event.token_ids
                if isinstance(event, Finished):
                    self.finished(event)
            expired = any(isinstance(event, Finished) and event.reason == "deadline" for event in events)
            assert expired or len(self.runner.rows) == rows + working, "a step made no progress"

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.generator.cancel(data.draw(st.sampled_from(self.jobs)))

    def finished(self, event: Finished) -> None:
        tokens = self.streams[event.job]
        assert tokens == expected_of(event.job, len(tokens), event.reason in ("length", "context"))
        if event.reason not in ("cancelled", "deadline"):
            assert len(tokens) == event.new_tokens

    @invariant()
    def whole(self) -> None:
        self.generator.check_integrity()

    def teardown(self) -> None:
        for _ in range(100_000):
            if not self.generator.active:
                break
            self.step(1)
        assert not self.generator.active
        assert self.generator._pool.num_available == 5
        assert all(job.finished for job in self.jobs)


Life.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestLife = Life.TestCase
