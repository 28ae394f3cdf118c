"""One answer of the model, as a stream of harmless text that can be stopped between two tokens."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from exllama.cli.chat.conversation import Conversation
from exllama.cli.chat.statistics import AnswerCounts
from exllama.cli.chat.terminal import TerminalGuard
from exllama.generator import Finished, Generator, Job, Text


def stream_answer(
    generator: Generator, conversation: Conversation, stopped: Callable[[], bool]
) -> Iterator[str | AnswerCounts]:
    """Yields text as it comes and the counts at the end; the caller puts the answer into the conversation.

    stopped: asked after every step; True cancels the answer. Raises ContextError when the conversation does not fit.
    """
    prompt = generator.tokenizer.encode_chat(conversation.messages)
    job = generator.enqueue(Job(prompt, conversation.max_new_tokens, conversation.sampling))
    guard = TerminalGuard()
    try:
        while job.finished is None:
            for event in generator.step():
                if isinstance(event, Text) and event.job is job:
                    yield guard.feed(event.text)
            if stopped():
                generator.cancel(job)
    finally:
        generator.cancel(job)
    if job.finished.error is not None:
        raise job.finished.error
    yield counts_of(job.finished)


def counts_of(event: Finished) -> AnswerCounts:
    """What the statistics keep of a finished answer."""
    return AnswerCounts(
        reason=event.reason,
        prompt_tokens=event.prompt_tokens,
        cached_tokens=event.cached_tokens,
        new_tokens=event.new_tokens,
        prefill_seconds=event.times.prefill,
        decode_seconds=event.times.decode,
    )


@contextmanager
def ctrl_c_stops() -> Iterator[Callable[[], bool]]:
    """While an answer runs, Ctrl-C only sets a flag, so that it cannot cut through the generator's bookkeeping."""
    asked = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
