"""The generator for asyncio: the model runs in a thread of its own, and the event loop never waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from exllama.errors import UsageError
from exllama.generator.events import Event, Finished, Text
from exllama.generator.generator import Generator, Prompt
from exllama.generator.job import Job
from exllama.generator.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from typing_extensions import Self


class _Mailbox:
    """Events of one job on their way from the thread that steps to the task that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | BaseException] = asyncio.Queue()

    def put(self, items: Sequence[Event | BaseException]) -> None:
        """From any thread. A loop that has ended meanwhile waits for nothing."""
        try:
            self._loop.call_soon_threadsafe(self._put, items)
        except RuntimeError:
            return

    async def get(self) -> Event:
        """The next event. Raises what the step raised."""
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _put(self, items: Sequence[Event | BaseException]) -> None:
        for item in items:
            self._queue.put_nowait(item)


class AsyncGenerator:
    """Answers any number of tasks together.

    Takes over a Generator: nobody else calls its `step` from now on, and closing this closes it too. Every method may
    be called from tasks of any event loop; cancelling a task, or leaving its iterator, cancels its job, whose pages are
    free within one step. `generator` may still be asked for everything but events.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._mailboxes: dict[Job, _Mailbox] = {}
        self._abandoned: list[Job] = []  # to be cancelled before the next step
        self._lock = threading.Lock()  # guards both, and is never held while anything waits
        self._work = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="exllama", daemon=True)
        self._thread.start()

    async def events(self, job: Job) -> AsyncIterator[Event]:
        """Enqueues a job and yields all its events, Finished last. Raises what Generator.enqueue raises."""
        mailbox = await self._enqueue(job)
        try:
            while True:
                event = await mailbox.get()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._abandon(job)

    async def stream(
        self,
        prompt: Prompt | Job,
        max_new_tokens: int | None = 512,
        sampling: Sampling = GREEDY,
        stop: Sequence[str | int] = (),
    ) -> AsyncIterator[Text]:
        """The answer piece by piece; see Generator.stream. Close it (`aclosing`) when leaving early.

        Raises what Generator.enqueue raises, and NumericsError when the model's output is no number.
        """
        job = prompt if isinstance(prompt, Job) else Job(prompt, max_new_tokens, sampling, stop)
        mailbox = await self._enqueue(job)
        try:
            while not isinstance(event := await mailbox.get(), Finished):
                if isinstance(event, Text):
                    yield event
            if event.error is not None:
                raise event.error
        finally:
            self._abandon(job)

    async def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int | None = 512,
        sampling: Sampling = GREEDY,
        stop: Sequence[str | int] = (),
    ) -> str:
        """The whole answer to one prompt; `asyncio.gather` some for a batch."""
        return "".join([piece.text async for piece in self.stream(prompt, max_new_tokens, sampling, stop)])

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_new_tokens: int | None = 512,
        sampling: Sampling = GREEDY,
        stop: Sequence[str | int] = (),
    ) -> str:
        """The assistant's next message; see Generator.chat."""
        prompt = await asyncio.to_thread(self.generator.tokenizer.encode_chat, messages)
        return await self.generate(prompt, max_new_tokens, sampling, stop)

    def cancel(self, job: Job) -> None:
        """Ends a job before the next step; its last event says so. Harmless when it has ended. Waits for nothing."""
        with self._lock:
            self._abandoned.append(job)
        self._work.set()

    async def close(self) -> None:
        """Cancels all jobs and gives memory back. Harmless when called twice."""
        self._closed = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self.generator.close)
        self._tell_all(UsageError("this generator was closed while the job ran"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _enqueue(self, job: Job) -> _Mailbox:
        """Tokenizing and waiting for a step to end happen in a worker thread."""
        if self._closed:
            raise UsageError("this generator is closed: make a new one")
        mailbox = _Mailbox()
        with self._lock:
            if job in self._mailboxes:
                raise UsageError("this job was enqueued before: make a new Job for every answer")
            self._mailboxes[job] = mailbox
        pending = asyncio.get_running_loop().run_in_executor(None, self.generator.enqueue, job)
        try:
            await asyncio.shield(pending)
        except asyncio.CancelledError:
            pending.add_done_callback(lambda done: self._abandon(job, done.exception()))
            raise
        except BaseException:
            self._forget(job)
            raise
        self._work.set()
        return mailbox

    def _abandon(self, job: Job, error: BaseException | None = None) -> None:
        """Nobody listens to this job any more, which was enqueued unless there is an error."""
        self._forget(job)
        if job.finished is None and error is None:
            self.cancel(job)

    def _forget(self, job: Job) -> None:
        with self._lock:
            self._mailboxes.pop(job, None)

    def _run(self) -> None:
        """The thread that steps while there is something to do."""
        while not self._closed:
            self._work.wait()
            self._work.clear()
            while not self._closed and (self._abandoned or self.generator.active):
                self._step()

    def _step(self) -> None:
        try:
            with self._lock:
                abandoned, self._abandoned = self._abandoned, []
            for job in abandoned:
                self.generator.cancel(job)
            self._deliver(self.generator.step())
        except BaseException as error:  # whoever waits is told; the thread goes on for those who come later
            jobs = self._tell_all(error)
            for job in jobs:
                self.generator.cancel(job)

    def _deliver(self, events: list[Event]) -> None:
        letters: dict[Job, list[Event]] = {}
        for event in events:
            letters.setdefault(event.job, []).append(event)
        with self._lock:
            addressed = [(self._mailboxes.get(job), letter) for job, letter in letters.items()]
        for mailbox, letter in addressed:
            if mailbox is not None:
                mailbox.put(letter)

    def _tell_all(self, error: BaseException) -> list[Job]:
        with self._lock:
            waiting, self._mailboxes = self._mailboxes, {}
        for mailbox in waiting.values():
            mailbox.put([error])
        return list(waiting)
