"""A request for one answer."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from exllama.errors import UsageError
from exllama.generator.answer import Answer
from exllama.generator.constraints import Grammar
from exllama.generator.events import Finished
from exllama.generator.sampling import GREEDY, Sampling
from exllama.generator.sampling.settings import check_range

MAX_STOPS = 64
MAX_PRIORITY = 1000
MAX_LOGPROBS = 1024
MAX_CFG_SCALE = 1000
MAX_BANNED = 4096


@dataclass(eq=False)
class Job:
    """One prompt and how to answer it. Fields are read when the job is enqueued; a job is enqueued once.

    prompt: text, or token ids. max_new_tokens: None for as many as fit. sampling: default greedy. stop: strings and
    token ids that end the answer and are not part of it; the model's own end tokens always do. seed: goes before the
    one in `sampling`; None twice: a random one, which stands here after enqueue. salt: jobs with different salts never
    share cached pages (tenants). min_new_tokens: before these, no token ends the answer (end tokens cannot be drawn)
    and stop strings are not looked for. priority: higher ones run first and take the place of lower ones; nobody is
    overtaken for ever (scheduler.MAX_SKIPS). deadline: seconds after enqueue at which the answer ends unfinished
    ("deadline"); among equal priorities the nearest deadline runs first. grammars: the answer follows all of them
    (a model's end token ends it where they allow an end). banned_strings: texts that never occur in the answer, in
    capitals or not: text waits while it may become one, and when it has, its tokens are taken back and the token that
    began it is not drawn there again.
    token_healing: the prompt's last token is drawn anew, from those that begin with its text, which is no part of the
    answer: for prompts that end inside of what would be one token, as in "http:". A control token stays as it is.
    negative_prompt, cfg_scale: what to keep away from, and how far: a token is drawn from the logits after this prompt
    plus cfg_scale times what the logits after `prompt` have more (classifier-free guidance; 1: no guidance). Both
    prompts are followed by the answer, so such a job takes two places in the batch and pages for two.
    logprobs: report the log-probability of every new token and as many of the most probable tokens in its place; None:
    neither. filtered_logprobs: also of the distribution that the token was drawn from. return_logits: the logits too.
    """

    prompt: str | Sequence[int]
    max_new_tokens: int | None = 512
    sampling: Sampling = GREEDY
    stop: Sequence[str | int] = ()
    seed: int | None = None
    salt: bytes = b""
    min_new_tokens: int = 0
    priority: int = 0
    deadline: float | None = None
    grammars: Sequence[Grammar] = ()
    banned_strings: Sequence[str] = ()
    token_healing: bool = False
    negative_prompt: str | Sequence[int] | None = None
    cfg_scale: float = 1.0
    logprobs: int | None = None
    filtered_logprobs: bool = False
    return_logits: bool = False
    finished: Finished | None = field(default=None, init=False)
    answer: Answer | None = field(default=None, init=False, repr=False)  # the generator's; set by enqueue

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _check_count("max_new_tokens", self.max_new_tokens)
        _check_least(self.min_new_tokens, self.max_new_tokens)
        if isinstance(self.priority, bool) or not isinstance(self.priority, int) or abs(self.priority) > MAX_PRIORITY:
            raise UsageError(f"priority is {self.priority!r}, expected a whole number within +-{MAX_PRIORITY}")
        if not (self.deadline is None or (_is_number(self.deadline) and 0 < self.deadline < math.inf)):
            raise UsageError(f"deadline is {self.deadline!r}, expected seconds above 0, or None for no end")
        check_range("seed", self.seed, whole=True)
        if not isinstance(self.sampling, Sampling):
            raise UsageError(f"sampling is {self.sampling!r}, expected a Sampling")
        if not isinstance(self.salt, bytes):
            raise UsageError(f"salt is {type(self.salt).__name__}, expected bytes")
        self._check_guidance()
        self._check_logprobs()
        self.stop = check_stops(self.stop)
        self.grammars = (self.grammars,) if isinstance(self.grammars, Grammar) else tuple(self.grammars)
        if not all(isinstance(grammar, Grammar) for grammar in self.grammars):
            raise UsageError(f"grammars holds {self.grammars!r}, expected objects of Grammar")
        self.banned_strings = _check_banned(self.banned_strings)

    def _check_guidance(self) -> None:
        if self.token_healing and self.negative_prompt is not None:
            raise UsageError("token_healing is set with a negative_prompt, which may end otherwise: use one of them")
        scale = self.cfg_scale
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= MAX_CFG_SCALE:
            raise UsageError(f"cfg_scale is {scale!r}, expected a number within +-{MAX_CFG_SCALE}")
        if (self.negative_prompt is None) != (self.cfg_scale == 1.0):
            found = (
                f"cfg_scale is {self.cfg_scale!r} {'with' if self.cfg_scale == 1.0 else 'without'} a negative_prompt"
            )
            raise UsageError(f"{found}, expected both a negative_prompt and a cfg_scale other than 1, or neither")

    def _check_logprobs(self) -> None:
        top = self.logprobs
        if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= MAX_LOGPROBS):
            raise UsageError(f"logprobs is {top!r}, expected a whole number from 0 to {MAX_LOGPROBS}, or None")
        if self.filtered_logprobs and top is None:
            raise UsageError("filtered_logprobs is set without logprobs, expected how many alternatives in logprobs")

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.answer.text if self.answer else ""

    def fix_seed(self) -> int:
        """The seed to use, which is also kept."""
        if self.seed is None:
            self.seed = int.from_bytes(os.urandom(8), "little") if self.sampling.seed is None else self.sampling.seed
        return self.seed


def check_stops(stop: Sequence[str | int]) -> tuple[str | int, ...]:
    """A tuple of stops. Raises UsageError when one means nothing."""
    stops = (stop,) if isinstance(stop, (str, int)) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise UsageError(f"stop has {len(stops)} entries, at most {MAX_STOPS} are allowed")
    for entry in stops:
        if isinstance(entry, bool) or not isinstance(entry, (str, int)) or entry == "":
            raise UsageError(f"stop holds {entry!r}, expected non-empty strings and token ids")
    return stops


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_banned(banned: Sequence[str]) -> tuple[str, ...]:
    if isinstance(banned, str) or not all(isinstance(text, str) and text for text in banned):
        raise UsageError(f"banned_strings is {banned!r}, expected a list of texts that are not empty")
    if len(banned) > MAX_BANNED:
        raise UsageError(f"banned_strings has {len(banned)} entries, at most {MAX_BANNED} are allowed")
    return tuple(banned)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}, expected a whole number from 1, or None for no limit")


def _check_least(least: object, most: int | None) -> None:
    highest = (1 << 40) if most is None else most
    if isinstance(least, bool) or not isinstance(least, int) or not 0 <= least <= highest:
        limit = "" if most is None else f" to max_new_tokens, {most}"
        raise UsageError(f"min_new_tokens is {least!r}, expected a whole number from 0{limit}")
