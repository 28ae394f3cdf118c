"""The generator for asyncio: many tasks, cancellation, an event loop that never waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable
from contextlib import aclosing
from typing import Any

import pytest

from exllama.errors import ContextError, NumericsError, UsageError
from exllama.generator import AsyncGenerator, Finished, Generator, Job, Sampling, Started, Text
from tests.generator.fake_model import FakeModel, FakeRunner, make
from tests.generator.oracle import answer_of
from tests.generator.test_scheduler import prompt_of


def run(work: Awaitable[Any]) -> Any:
    async def limited() -> Any:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(limited())


async def idle(generator: Generator) -> None:
    while generator.active:
        await asyncio.sleep(0.001)


def test_many_tasks_get_their_own_answers() -> None:
    async def main() -> None:
        generator, runner = make(pages=24, batch=8, rows=128)
        async with AsyncGenerator(generator) as together:
            prompts = [prompt_of(3 + 7 * i, i) for i in range(40)]
            sampling = Sampling(temperature=0.8, seed=3)
            answers = await asyncio.gather(*(together.generate(prompt, 12, sampling) for prompt in prompts))
            for prompt, answer in zip(prompts, answers, strict=True):
                assert list(answer.encode()) == answer_of(prompt, 12, sampling)
            assert max(runner.rows[:-20]) >= 8
            await idle(generator)
            generator.check_integrity()
            assert generator._pool.num_available == 24
        assert generator.model.closed == 1  # type: ignore[attr-defined]

    run(main())


def test_events_and_streams() -> None:
    async def main() -> None:
        generator, _ = make()
        async with AsyncGenerator(generator) as together:
            job = Job("hello", 9)
            events = [event async for event in together.events(job)]
            assert [type(event) for event in events] == [Started, *[Text] * 9, Finished]
            pieces = [piece.text async for piece in together.stream("hello", 9)]
            assert "".join(pieces) == job.text
            generator.tokenizer.encode_chat = lambda messages: list(messages[0]["content"].encode())  # type: ignore[method-assign]
            assert await together.chat([{"role": "user", "content": "hello"}], 9) == job.text

    run(main())


def test_the_event_loop_never_waits_for_a_step() -> None:
    """R10: Steps take 50 ms; meanwhile the loop goes round, also while jobs come and go."""

    async def main() -> None:
        generator, runner = make(batch=2)
        forward = runner.forward

        def slow(batch: Any) -> Any:
            time.sleep(0.05)
            return forward(batch)

        runner.forward = slow  # type: ignore[method-assign]
        turns = 0

        async def clock() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.001)
                turns += 1

        async with AsyncGenerator(generator) as together:
            ticking = asyncio.create_task(clock())
            for i in range(6):
                task = asyncio.create_task(together.generate(prompt_of(9, i), 3))
                await asyncio.sleep(0.02)
                if i % 2:
                    task.cancel()
            await idle(generator)
            assert len(runner.rows) >= 5
            assert turns > 4 * len(runner.rows)
            ticking.cancel()

    run(main())


def test_cancelling_a_task_frees_its_pages() -> None:
    """R01: a task that is gone leaves none behind."""

    async def main() -> None:
        generator, _ = make(pages=8, batch=2)
        async with AsyncGenerator(generator) as together:
            tasks = [asyncio.create_task(together.generate(prompt_of(300, i), None)) for i in range(6)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(end) for end in ends} == {asyncio.CancelledError}
            await idle(generator)
            assert generator._pool.num_available == 8
            assert not together._mailboxes
            assert list((await together.generate("hello", 5)).encode()) == answer_of(list(b"hello"), 5)

    run(main())


def test_leaving_a_stream_and_cancelling_by_name() -> None:
    async def main() -> None:
        generator, _ = make()
        async with AsyncGenerator(generator) as together:
            left = Job("hello", None)
            async with aclosing(together.stream(left)) as stream:
                async for _ in stream:
                    break
            named, reasons = Job("hello", None), []
            async for event in together.events(named):
                together.cancel(named)
                together.cancel(named)
                if isinstance(event, Finished):
                    reasons.append(event.reason)
            await idle(generator)
            assert left.finished is not None
            assert (left.finished.reason, reasons) == ("cancelled", ["cancelled"])
            together.cancel(named)
            assert not generator.active

    run(main())


def test_errors_reach_the_task_that_caused_them() -> None:
    async def main() -> None:
        generator, runner = make(pages=4)
        async with AsyncGenerator(generator) as together:
            good = asyncio.create_task(together.generate("hello", 200))
            with pytest.raises(ContextError):
                await together.generate([5] * 5000, 5)
            with pytest.raises(UsageError, match="no tokens"):
                await together.generate("", 5)
            job = Job("x", 3)
            assert [event async for event in together.events(job)]
            with pytest.raises(UsageError, match="before"):
                await anext(aiter(together.events(job)))
            assert len(await good) == 200
            runner.poison = ord("y")
            with pytest.raises(NumericsError):
                await together.generate("y", 5)
            runner.fail = True
            with pytest.raises(MemoryError):
                await together.generate("hello", 5)
            runner.fail, runner.poison = False, None
            assert list((await together.generate("hello", 5)).encode()) == answer_of(list(b"hello"), 5)
            generator.check_integrity()
            assert not together._mailboxes

    run(main())


def test_closing_tells_who_waits() -> None:
    async def main() -> None:
        generator, _ = make()
        together = AsyncGenerator(generator)
        task = asyncio.create_task(together.generate("hello", None))
        await asyncio.sleep(0.02)
        await together.close()
        await together.close()
        with pytest.raises(UsageError, match="closed"):
            await task
        with pytest.raises(UsageError, match="closed"):
            await together.generate("hello", 5)
        assert not together._thread.is_alive()

    run(main())


def test_tasks_of_several_event_loops() -> None:
    generator, _ = make(pages=16, batch=4)
    together, wrong = AsyncGenerator(generator), []

    async def work(seed: int) -> None:
        for i in range(5):
            prompt = prompt_of(30, 100 * seed + i)
            if list((await together.generate(prompt, 9)).encode()) != answer_of(prompt, 9):
                wrong.append(seed)

    threads = [threading.Thread(target=run, args=(work(seed),)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    run(together.close())
    assert wrong == []


def test_a_full_queue_is_told_at_once() -> None:
    async def main() -> None:
        runner = FakeRunner(16, 64, 1)
        generator = Generator(FakeModel(4096), runner, max_queue=2)  # type: ignore[arg-type]
        async with AsyncGenerator(generator) as together:
            tasks = [asyncio.create_task(together.generate(prompt_of(9, i), 400)) for i in range(9)]
            done = await asyncio.gather(*tasks, return_exceptions=True)
            refused = [each for each in done if isinstance(each, BaseException)]
            assert {type(each).__name__ for each in refused} == {"QueueFull"}
            assert 6 <= len(refused) <= 7

    run(main())
