"""Counts and speeds of a chat, per answer and in all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerCounts:
    """One finished answer. reason: why it ended; seconds are wall time of the two phases."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens

    @property
    def decoded_tokens(self) -> int:
        """Tokens that decoding made; the first one belongs to the prefill."""
        return max(0, self.new_tokens - 1)


@dataclass
class Statistics:
    """Sums over the answers of one program run."""

    context_length: int
    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decoded_tokens: int = 0
    context_tokens: int = 0

    def add(self, counts: AnswerCounts) -> None:
        self.answers += 1
        self.prompt_tokens += counts.prompt_tokens
        self.cached_tokens += counts.cached_tokens
        self.new_tokens += counts.new_tokens
        self.prefill_seconds += counts.prefill_seconds
        self.decode_seconds += counts.decode_seconds
        self.decoded_tokens += counts.decoded_tokens
        self.context_tokens = counts.context_tokens

    def line(self, counts: AnswerCounts) -> str:
        """What stands below an answer."""
        share = 100 * counts.context_tokens / self.context_length
        end = {"length": ", cut at max_new_tokens", "cancelled": ", stopped", "context": ", the context is full"}
        return (
            f"{counts.new_tokens} tokens, {rate(counts.decoded_tokens, counts.decode_seconds)}, "
            f"context {counts.context_tokens} of {self.context_length} ({share:.0f} %){end.get(counts.reason, '')}"
        )

    def report(self) -> str:
        """All of it, a line each."""
        computed = self.prompt_tokens - self.cached_tokens
        return "\n".join(
            [
                f"answers   {self.answers}",
                f"prompt    {self.prompt_tokens} tokens, {self.cached_tokens} of them from the cache, "
                f"{rate(computed, self.prefill_seconds)}",
                f"answered  {self.new_tokens} tokens, {rate(self.decoded_tokens, self.decode_seconds)}",
                f"context   {self.context_tokens} of {self.context_length} tokens",
            ]
        )


def rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s" if seconds > 0 else "no time measured"
