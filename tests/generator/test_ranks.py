"""Who goes first and how long one may wait: priorities, deadlines, the queue's bound, turns at the lock."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from exllama.engine.batch import Batch
from exllama.errors import QueueFull, UsageError
from exllama.generator import Event, Finished, Generator, Job, Started, Text, scheduler
from exllama.generator.scheduler import MAX_SKIPS, MIXED_ROWS
from exllama.generator.turns import Turns
from tests.generator.fake_model import EOS, FakeModel, FakeRunner, make
from tests.generator.oracle import answer_of
from tests.generator.test_scheduler import assert_right, finish, prompt_of


def ends(events: list[Event]) -> list[Job]:
    return [event.job for event in events if isinstance(event, Finished)]


def test_higher_priorities_run_first() -> None:
    """R04: priorities are kept."""
    generator, _ = make(batch=1)
    jobs = [Job(prompt_of(20, i), 5, priority=priority) for i, priority in enumerate([0, 0, -3, 2, 1000, 2])]
    for job in jobs:
        generator.enqueue(job)
    assert ends(finish(generator, [])) == [jobs[i] for i in (4, 3, 5, 0, 1, 2)]
    assert_right(*jobs)


def test_a_higher_priority_takes_the_place_of_a_lower_one() -> None:
    generator, _ = make(batch=2)
    low = [generator.enqueue(Job(prompt_of(30, i), 100)) for i in range(2)]
    generator.step()
    high = generator.enqueue(Job(prompt_of(30, 9), 20, priority=1))
    assert any(isinstance(event, Text) and event.job is high for event in generator.step())
    assert ends(finish(generator, [])) == [high, *low]
    assert_right(high, *low)


def test_a_higher_priority_takes_pages_of_lower_ones_only_if_that_helps() -> None:
    generator, runner = make(pages=6, batch=8, rows=4096)
    first = generator.enqueue(Job(prompt_of(500, 0), 100, priority=5))
    second = generator.enqueue(Job(prompt_of(500, 1), 100))
    generator.step()
    large = generator.enqueue(Job(prompt_of(1200, 2), 5, priority=1))  # five pages: would not fit beside `first`
    generator.step()
    assert runner.rows[-1] == 2
    small = generator.enqueue(Job(prompt_of(600, 3), 5, priority=2))  # three pages: fits when `second` goes
    generator.step()
    assert runner.rows[-1] == MIXED_ROWS + 1
    assert ends(finish(generator, []))[0] is small
    assert_right(first, second, large, small)


def test_nobody_is_overtaken_for_ever() -> None:
    generator, _ = make(batch=1)
    generator.enqueue(Job("first", 3, priority=1))
    low = generator.enqueue(Job("low", 3))
    done = 0
    while low.finished is None:
        generator.enqueue(Job(prompt_of(5, done), 3, priority=1))
        done += sum(event.job is not low for event in generator.step() if isinstance(event, Finished))
        generator.check_integrity()
    assert done == MAX_SKIPS + 1


def test_the_nearest_deadline_runs_first() -> None:
    generator, _ = make(batch=1)
    jobs = [Job(prompt_of(20, i), 5, deadline=seconds) for i, seconds in enumerate([None, 90.0, 60.0, 75.0])]
    for job in jobs:
        generator.enqueue(job)
    assert ends(finish(generator, [])) == [jobs[i] for i in (2, 3, 1, 0)]
    assert_right(*jobs)


def test_a_deadline_ends_jobs_that_run_and_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """R04: deadlines count while waiting too."""
    now = [0.0]
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    generator, _ = make(batch=1, pages=8)
    running = generator.enqueue(Job(prompt_of(40, 0), None, deadline=0.05))
    waiting = generator.enqueue(Job(prompt_of(40, 1), None, deadline=0.05, priority=-1))
    endless = generator.enqueue(Job(prompt_of(40, 2), 20, priority=-2))
    events: list[Event] = []
    while generator.active:
        events += generator.step()
        generator.check_integrity()
        now[0] += 0.002
    assert [(event.job, event.reason) for event in events if isinstance(event, Finished)] == [
        (running, "deadline"), (waiting, "deadline"), (endless, "length"),
    ]  # fmt: skip
    assert 20 < running.finished.new_tokens == len(running.text) < 30
    assert waiting.finished.new_tokens == 0
    assert sum(isinstance(event, Started) for event in events) == 2
    assert_right(running, endless)
    assert generator._pool.num_available == 8


def test_a_full_queue_refuses_with_counts() -> None:
    """R03: the queue is bounded."""
    runner = FakeRunner(64, 512, 2)
    generator = Generator(FakeModel(4096), runner, max_queue=3)  # type: ignore[arg-type]
    for i in range(3):
        generator.enqueue(Job(prompt_of(9, i), 40))
    generator.step()
    jobs = [generator.enqueue(Job(prompt_of(9, i), 4)) for i in range(2)]
    refused = Job(prompt_of(9, 5), 4)
    with pytest.raises(QueueFull, match="3 jobs wait beside 2 that run") as caught:
        generator.enqueue(refused)
    assert (caught.value.waiting, caught.value.running) == (3, 2)
    generator.cancel(jobs[0])
    generator.enqueue(refused)  # it was not taken, so it may come again
    finish(generator, [])
    assert_right(refused)


def test_a_list_of_prompts_may_be_longer_than_the_queue() -> None:
    runner = FakeRunner(64, 512, 4)
    generator = Generator(FakeModel(4096), runner, max_queue=5)  # type: ignore[arg-type]
    prompts = [prompt_of(9, i) for i in range(40)]
    assert [list(text.encode()) for text in generator.generate(prompts, 6)] == [answer_of(p, 6) for p in prompts]
    assert runner.rows[-2] == 4


def test_no_end_before_min_new_tokens() -> None:
    generator, _ = make(ends=True)
    short = next(p for i in range(99) if len(answer_of(p := prompt_of(9, i), 500, ends=True)) < 40)
    for least in (1, 60, 300):
        job = Job(short, 300, min_new_tokens=least)
        finish(generator, [job])
        tokens = list(job.text.encode())
        assert job.finished.new_tokens >= least
        assert not set(tokens) & set(EOS)
        natural = answer_of([*short, *tokens[:least]], 300 - least, ends=True)  # goes on as if nothing had been
        assert tokens[least:] == [token for token in natural if token not in EOS]


def test_stop_strings_count_after_min_new_tokens() -> None:
    generator, _ = make()
    text = generator.generate("hello", 60)
    stop = text[3:5]
    again = text.find(stop, 20)
    job = Job("hello", 60, stop=[stop], min_new_tokens=20)
    finish(generator, [job])
    assert job.text == (text if again < 0 else text[:again])
    assert generator.generate("hello", 60, stop=[stop]) == text[:3]


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_new_tokens", -1), ("min_new_tokens", 513), ("min_new_tokens", 1.0), ("priority", 1.5), ("priority", 1001),
     ("priority", True), ("deadline", 0), ("deadline", -1.0), ("deadline", float("nan")), ("deadline", float("inf"))],
)  # fmt: skip
def test_wishes_that_mean_nothing(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Job("x", **{name: value})


def test_streams_pause_for_short_steps_while_a_long_prompt_is_read() -> None:
    """8 streams and a prompt of 8k tokens: every step brings every stream a token, and computes 512 others at most."""
    generator, runner = make(pages=128, rows=2048, context=16384)
    streams = [generator.enqueue(Job(prompt_of(20, i), 200)) for i in range(8)]
    generator.step()
    long = generator.enqueue(Job(prompt_of(8000, 9), 3))
    generator.step()
    short = generator.enqueue(Job(prompt_of(50, 10), 3))
    first = generator.step()
    assert any(isinstance(event, Text) and event.job is short for event in first), "it waits for more than one step"
    while long.finished is None:
        heard = {event.job for event in generator.step() if isinstance(event, Text)}
        assert heard >= set(streams)
    assert max(runner.rows[1:]) <= MIXED_ROWS + 9
    finish(generator, [])
    assert_right(long, short, *streams)


def test_who_calls_step_in_a_loop_keeps_nobody_waiting() -> None:
    """An enqueue waits for the step that runs and no more; a plain lock is taken again before a waiter wakes up."""
    generator, runner = make(pages=64, batch=2)
    forward, begun, stop = runner.forward, [0], threading.Event()

    def slow(batch: Batch) -> torch.Tensor:
        begun[0] += 1
        time.sleep(0.003)
        return forward(batch)

    runner.forward = slow  # type: ignore[method-assign]
    generator.enqueue(Job("endless", None))

    def loop() -> None:
        while not stop.is_set():
            generator.step()

    thread = threading.Thread(target=loop)
    thread.start()
    waits = []
    for i in range(20):
        before = begun[0]
        generator.cancel(generator.enqueue(Job(prompt_of(5, i), 5)))
        waits.append(begun[0] - before)
    stop.set()
    thread.join()
    # Two calls: the step that runs, perhaps one between them, and one that begins just after. The median: any of them
    # may find this thread off the processor for a while.
    assert sorted(waits)[10] <= 3


def test_turns_are_reentrant_and_survive_an_interrupt() -> None:
    turns, order, inside = Turns(), [], threading.Event()

    def work(name: int) -> None:
        with turns, turns:
            order.append(name)

    def holder() -> None:
        with turns:
            inside.set()
            while len(turns._waiting) < 3:
                time.sleep(0.001)

    threads = [threading.Thread(target=holder)]
    threads[0].start()
    inside.wait()
    for name in range(3):
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
        while len(turns._waiting) == name and threads[0].is_alive():
            time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2]
    turn = threading.Lock()
    turns._waiting.append((1, turn))
    turns._give_up(1, turn)
    assert not turns._waiting
    with turns:
        pass
    turns._owner = 2  # handed over to a thread that is being interrupted: it passes the lock on
    turns._give_up(2, turn)
    assert turns._owner is None
