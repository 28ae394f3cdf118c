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
from exllama.errors import ContextError
from exllama.generator import Finished, Generator, Job, Text


def stream_answer(
    generator: Generator, conversation: Conversation, stopped: Callable[[], bool]
) -> Iterator[str | AnswerCounts]:
    """Yields text as it comes and the counts at the end; the caller puts the answer into the conversation.

    stopped: asked after every step; True cancels the answer. Raises ContextError when not even one token fits.
    """
    prompt = generator.tokenizer.encode_chat(conversation.messages)
    room = generator.context_length - len(prompt)
    if room < 1:
        raise ContextError(len(prompt), generator.context_length)
    limit = min(room, conversation.max_new_tokens)
    job = generator.enqueue(Job(prompt=prompt, max_new_tokens=limit, sampling=conversation.sampling))
    guard = TerminalGuard()
    try:
        while generator.active:
            for event in generator.step():
                if isinstance(event, Text):
                    yield guard.feed(event.text)
                elif isinstance(event, Finished):
                    yield counts_of(event, full=limit < conversation.max_new_tokens)
            if stopped():
                generator.cancel(job)
    finally:
        generator.cancel(job)


def counts_of(event: Finished, full: bool) -> AnswerCounts:
    """full: the context, not max_new_tokens, was the limit."""
    reason = "context" if full and event.reason == "length" else event.reason
    return AnswerCounts(
        reason=reason,
        prompt_tokens=event.prompt_tokens,
        cached_tokens=event.cached_tokens,
        new_tokens=event.new_tokens,
        prefill_seconds=event.prefill_seconds,
        decode_seconds=event.decode_seconds,
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
