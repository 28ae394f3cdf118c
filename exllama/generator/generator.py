"""The dynamic generator: any number of jobs, one step at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator as GeneratorType
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray

from exllama.cache.chain_file import load_chain, save_chain
from exllama.cache.page_table import PageTable
from exllama.cache.pages import PagePool
from exllama.cache.spill import Spill
from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.engine.fingerprint import pages_header
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.errors import ContextError, UsageError
from exllama.generator import options
from exllama.generator.answer import Answer
from exllama.generator.constraints import Grammar
from exllama.generator.constraints.constraint import Constraint
from exllama.generator.constraints.guidance import GuidanceCompiler
from exllama.generator.drafting.choose import make_drafter
from exllama.generator.drafting.drafter import Drafter
from exllama.generator.drafting.speculation import Speculation
from exllama.generator.events import Event, Finished, Text
from exllama.generator.healing import Healed, Healer
from exllama.generator.job import Job
from exllama.generator.lane import Lane, longest_answer
from exllama.generator.sampling import GREEDY, Sampling
from exllama.generator.sampling.breakers import Breakers
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.logprobs import Wish
from exllama.generator.scheduler import MAX_QUEUE, Scheduler
from exllama.generator.sequence import Sequence as Running
from exllama.generator.turns import Turns
from exllama.ops import PAGE_SIZE
from exllama.tokenizer.detokenizer import IncrementalDetokenizer
from exllama.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from exllama.generator.options import LoadOptions

Prompt = str | Sequence[int]


class Pages(Protocol):
    """What is used of cache.storage.KVCache."""

    num_pages: int

    @property
    def page_nbytes(self) -> int: ...
    @property
    def geometry(self) -> dict[str, Any]: ...
    def copy_page(self, src: int, dst: int) -> None: ...
    def read_page(self, page: int) -> NDArray[np.uint8]: ...
    def write_page(self, page: int, data: NDArray[np.uint8]) -> None: ...
    def poison_page(self, page: int) -> None: ...


class BatchRunner(Protocol):
    """What is used of engine.runner.Runner."""

    max_rows: int
    max_sequences: int

    @property
    def cache(self) -> Pages: ...
    @property
    def faults(self) -> Mapping[int, str]: ...
    def forward(self, batch: Batch) -> torch.Tensor: ...


class LanguageModel(Protocol):
    """What is used of engine.model.Model."""

    context_length: int

    @property
    def vocab_size(self) -> int: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def fingerprint(self) -> str: ...
    def close(self) -> None: ...


class Generator:
    """Answers jobs together, over one model and one cache.

    Thread safety: every method may be called from any thread. One lock guards all state and is passed on in order of
    arrival; `step` holds it while the model runs, so a thread that calls `enqueue` or `cancel` waits for one step at
    most, however often others step. Events of jobs that `generate`, `stream` or `chat` brought go to these calls,
    whoever runs the step; all others come out of `step`.
    """

    def __init__(
        self,
        model: LanguageModel,
        runner: BatchRunner,
        max_queue: int = MAX_QUEUE,
        drafter: Drafter | None = None,
        spill: Spill | None = None,
    ) -> None:
        """model: closed with the generator. runner: its batches and its cache set the limits.

        max_queue: jobs that may wait for a place in the batch. drafter: guesses tokens; closed with the generator.
        spill: keeps the pages that the cache forgets.
        """
        pages = runner.cache.num_pages
        self.model, self.tokenizer, self._runner = model, model.tokenizer, runner
        self.cache_tokens = pages * PAGE_SIZE
        self.context_length = min(model.context_length, self.cache_tokens)  # of one sequence, answer included
        self._pool = PagePool(pages, spill=spill)
        self._speculation = Speculation(drafter) if drafter else None
        self._scheduler = Scheduler(
            self._pool, runner.max_sequences, runner.max_rows, self.context_length, runner.cache.copy_page, max_queue,
            self._speculation,
        )  # fmt: skip
        self._breakers = Breakers(self.tokenizer, model.vocab_size)
        self._lock = Turns()
        self._sequences: dict[Job, Running] = {}  # unfinished jobs
        self._mailboxes: dict[Job, list[Event]] = {}  # of jobs that a call of generate, stream or chat waits for
        self._events: list[Event] = []  # of all others, for step()
        self._compiling = threading.Lock()
        self._compiler: GuidanceCompiler | None = None  # made for the first job with a grammar
        self._healer: Healer | None = None  # for the first one with token healing
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str = "auto",
        cache: str = "fp16",
        cache_tokens: int | None = None,
        gpu_split: Sequence[float] | str | None = None,
        gpu_layers: int | None = None,
        draft: str | None = None,
        max_batch_size: int = 16,
        chunk_size: int = 2048,
        threads: int | None = None,
        **more: Unpack[LoadOptions],
    ) -> Self:
        """Loads a model and makes room for its cache.

        source: a folder, a .gguf file, `hf:org/name[@revision]` or `default`. device: "auto" (the CPU), "cpu", a
        GPU as in "cuda:0", or "reference".
        cache: "fp16", "q8", "q6", "q4" or bits of keys and values as in "8,4". cache_tokens: of all sequences
        together, rounded up to pages of 256; None: one sequence of full length, if memory allows. max_batch_size:
        sequences that run at a time, more wait. chunk_size: rows of a step, at least one per sequence. draft: what
        guesses tokens to make answers faster, the same bit for bit: "ngram" looks back in prompt and answer, "skip:N"
        is the model without N of its blocks, anything else names a smaller model of the same vocabulary. more: see
        LoadOptions.

        Raises UsageError for arguments that cannot be fulfilled, and what Model.from_pretrained raises.
        """
        options.check_load_options(dict(more))
        device = options.choose_device(device, gpu_split, gpu_layers)
        rows = max(options.check_count("chunk_size", chunk_size), options.check_count("max_batch_size", max_batch_size))
        rejection = options.follows_rejection(more.get("acceptance", "drawn"))
        queue = options.check_count("max_queue", more.get("max_queue", MAX_QUEUE))
        model = Model.from_pretrained(
            source, device, more.get("expand"), threads, more.get("context"), more.get("progress")
        )
        try:
            pages = options.cache_pages(model.cache_layers, cache, cache_tokens, model.context_length)
            store = KVCache(model.cache_layers, pages, cache)
            runner = Runner(model, store, rows, max_batch_size)
            drafter = make_drafter(draft, model, runner, more.get("progress"), rejection)
            return cls(model, runner, queue, drafter, options.make_spill(model, store, more))
        except BaseException:
            model.close()
            raise

    @overload  # a str is a sequence of str too, so the first one that fits counts
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: Prompt | Job,
        max_new_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: Sequence[str | int] = ...,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Prompt | Job],
        max_new_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: Sequence[str | int] = ...,
    ) -> list[str]: ...
    def generate(
        self,
        prompt: Any,
        max_new_tokens: int | None = 512,
        sampling: Sampling = GREEDY,
        stop: Sequence[str | int] = (),
    ) -> str | list[str]:
        """The answer to a prompt, or to each of a list of prompts, which run as one batch. Arguments as in Job.

        A Job, which has its own arguments, tells afterwards more than the text (`job.finished`).

        Raises what `enqueue` raises, and NumericsError when the model's output is no number.
        """
        several = isinstance(prompt, (list, tuple)) and len(prompt) > 0 and not _is_token(prompt[0])
        prompts = prompt if several else [prompt]
        jobs = [each if isinstance(each, Job) else Job(each, max_new_tokens, sampling, stop) for each in prompts]
        for _ in self._run(jobs):
            pass
        return [job.text for job in jobs] if several else jobs[0].text

    def stream(
        self,
        prompt: Prompt | Job,
        max_new_tokens: int | None = 512,
        sampling: Sampling = GREEDY,
        stop: Sequence[str | int] = (),
    ) -> Iterator[Text]:
        """The answer piece by piece. Whoever closes the iterator early cancels the rest.

        A Job, which has its own max_new_tokens and so on, tells afterwards how it went (`job.finished`).
        """
        return self._texts(prompt if isinstance(prompt, Job) else Job(prompt, max_new_tokens, sampling, stop))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_new_tokens: int | None = 512,
        sampling: Sampling = GREEDY,
        stop: Sequence[str | int] = (),
    ) -> str:
        """The assistant's next message; messages are {"role": ..., "content": ...}, put as the template says."""
        return self.generate(self.tokenizer.encode_chat(messages), max_new_tokens, sampling, stop)

    def enqueue(self, job: Job) -> Job:
        """Accepts a job; `step` answers it.

        Raises ContextError when the prompt leaves no room for an answer, QueueFull when max_queue jobs wait already,
        UsageError when it is empty, holds ids that are no tokens, when a grammar is wrong, or when the job was enqueued
        before.
        """
        prompts = [self._token_ids(job.prompt)]
        if job.negative_prompt is not None:
            prompts.append(self._token_ids(job.negative_prompt))
        healed = self._heal(prompts[0]) if job.token_healing else None
        prompts[0], hidden, first_ids = healed or (prompts[0], "", [])
        constraint = self._compile(list(job.grammars), hidden) if job.grammars else None
        with self._lock:
            self._check_open()
            if job.answer is not None:
                raise UsageError("this job was enqueued before: make a new Job for every answer")
            sampler = self._job_sampler(job)
            strings = [stop for stop in job.stop if isinstance(stop, str)]
            detokenizer = IncrementalDetokenizer(self.tokenizer)
            answer = Answer(detokenizer, strings, job.min_new_tokens, job.banned_strings, len(hidden))
            stop_ids = frozenset(self.tokenizer.eos_ids).union(stop for stop in job.stop if isinstance(stop, int))
            limit = self._limit([len(prompt) for prompt in prompts])
            tables = [PageTable(self._pool, job.salt) for _ in prompts]
            guide = Lane(prompts[1], tables[1]) if len(prompts) > 1 else None
            sequence = Running(job, prompts[0], limit, stop_ids, answer, tables[0], sampler, guide)
            sequence.constraint, sequence.first_ids = constraint, first_ids
            self._scheduler.add(sequence)
            job.answer, self._sequences[job] = answer, sequence
        return job

    def cancel(self, job: Job) -> None:
        """Ends a job now: its pages are free, and its Finished event says "cancelled". Harmless when it has ended."""
        with self._lock:
            sequence = self._sequences.get(job)
            if sequence is not None:
                self._scheduler.cancel(sequence)
                self._deliver()

    def step(self) -> list[Event]:
        """Runs every active job a step further and returns what happened since the last call."""
        with self._lock:
            self._advance()
            events, self._events = self._events, []
            return events

    @property
    def active(self) -> bool:
        """There is something to compute or an event to fetch."""
        return bool(self._sequences or self._events)

    def check_integrity(self) -> None:
        """Raises AssertionError on a broken invariant of pages, reference counts, indexes or queues."""
        with self._lock:
            self._scheduler.check_integrity()

    def save_pages(self, path: str | Path, prompt: Prompt, salt: bytes = b"") -> int:
        """Writes the cached pages that a job with this prompt would find to a file; returns the tokens in them.

        Whole pages only, so up to 255 tokens are left to be computed. Raises SourceError.
        """
        with self._lock:
            header, start = pages_header(self.model, self._runner.cache), self._pool.root(salt)
            return save_chain(Path(path), header, self._pool, self._runner.cache, start, self._token_ids(prompt))

    def load_pages(self, path: str | Path, salt: bytes = b"") -> int:
        """Makes the pages of a file findable again; returns the tokens in them. Raises SourceError and FormatError."""
        with self._lock:
            self._check_open()
            header, start = pages_header(self.model, self._runner.cache), self._pool.root(salt)
            return load_chain(Path(path), header, self._pool, self._runner.cache, start)

    def close(self) -> None:
        """Cancels all jobs and gives memory back. Harmless when called twice."""
        with self._lock:
            for job in list(self._sequences):
                self.cancel(job)
            if not self._closed:
                self._closed = True
                self._pool.close()
                if self._compiler:
                    self._compiler.close()
                self.model.close()
                if self._speculation:
                    self._speculation.close()
                del self._runner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _advance(self) -> None:
        """The loop's body: choose rows, run the model, draw tokens, tell."""
        self._check_open()
        step = self._scheduler.schedule()
        if step is not None:
            logits = self._runner.forward(step.batch)
            self._scheduler.commit(logits, self._runner.faults)
        self._deliver()

    def _deliver(self) -> None:
        """Puts new events where they are waited for."""
        for event in self._scheduler.take_events():
            if isinstance(event, Finished):
                del self._sequences[event.job]
            self._mailboxes.get(event.job, self._events).append(event)

    def _texts(self, job: Job) -> Iterator[Text]:
        with closing(self._run([job])) as events:
            for event in events:
                if isinstance(event, Text):
                    yield event

    def _run(self, jobs: Sequence[Job]) -> GeneratorType[Event, None, None]:
        """Enqueues jobs and yields their events until all have finished; on another way out, cancels the rest."""
        mailbox: list[Event] = []
        waiting: set[Job] = set()
        todo = deque(jobs)
        try:
            while waiting or todo:
                with self._lock:
                    while todo and (self._scheduler.has_room or not waiting):
                        self.enqueue(todo[0])
                        self._mailboxes[todo[0]] = mailbox
                        waiting.add(todo.popleft())
                    if not mailbox:
                        self._advance()
                    events = mailbox[:]
                    mailbox.clear()
                for event in events:
                    if isinstance(event, Finished):
                        waiting.remove(event.job)
                        if event.error is not None:
                            raise event.error
                    yield event
        finally:
            with self._lock:
                for job in waiting:
                    self.cancel(job)
                for job in jobs:
                    self._mailboxes.pop(job, None)

    def _heal(self, prompt: NDArray[np.int32]) -> Healed | None:
        with self._compiling:
            if self._healer is None:
                self._healer = Healer(self.tokenizer, self.model.vocab_size)
        return self._healer.heal(prompt)

    def _compile(self, grammars: list[Grammar], before: str) -> Constraint:
        with self._compiling:
            if self._compiler is None:
                self._compiler = GuidanceCompiler(self.tokenizer, self.model.vocab_size)
            return self._compiler.compile(grammars, before)

    def _token_ids(self, prompt: Prompt) -> NDArray[np.int32]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if isinstance(ids, (Mapping, bytes)) or not hasattr(ids, "__len__"):
            raise UsageError(f"the prompt is {type(prompt).__name__}, expected text or a sequence of token ids")
        if len(ids) == 0:
            raise UsageError("the prompt has no tokens, expected at least one")
        array = np.asarray(ids)
        typed = hasattr(ids, "dtype")  # numpy takes True in a list of numbers for 1
        mixed = not typed and any(isinstance(token_id, (bool, np.bool_)) for token_id in ids)
        if mixed or array.ndim != 1 or array.dtype.kind not in "iu":
            raise UsageError("the prompt holds something else than token ids, expected text or a sequence of token ids")
        if array.min() < 0 or array.max() >= self.model.vocab_size:
            wrong = array.min() if array.min() < 0 else array.max()
            raise UsageError(f"the prompt holds token id {wrong}, expected 0 to {self.model.vocab_size - 1}")
        if len(array) >= self.context_length:
            what = "context" if self.context_length < self.cache_tokens else "cache"
            raise ContextError(len(array), self.context_length, what)
        return np.array(array, np.int32)

    def _limit(self, lengths: list[int]) -> int:
        """The most tokens that the first of some prompts and its answer can come to, when the answer follows all."""
        if len(lengths) > self._runner.max_sequences:
            raise UsageError("a negative prompt needs a second place in the batch: set max_batch_size to 2 or more")
        new = longest_answer(lengths, self.context_length, self._pool.num_pages, PAGE_SIZE)
        if new < 1:
            found = f"a prompt of {lengths[0]} tokens, a negative one of {lengths[1]} and an answer after both"
            raise UsageError(f"{found} do not fit in a cache of {self.cache_tokens} tokens: raise cache_tokens")
        return lengths[0] + new

    def _job_sampler(self, job: Job) -> JobSampler:
        breakers = job.sampling.dry_sequence_breakers if job.sampling.dry_multiplier else ()
        wish = Wish(job.logprobs, job.filtered_logprobs, job.return_logits)
        return JobSampler(job.sampling, job.fix_seed(), self.model.vocab_size, self._breakers.ids(breakers), wish)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this generator is closed: make a new one")


def _is_token(value: object) -> bool:
    return isinstance(value, (int, np.integer))
