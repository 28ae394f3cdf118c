"""What a job must answer, computed without generator, scheduler, pages and native code."""

from __future__ import annotations

import numpy as np

from exllama.generator import GREEDY, Sampling
from exllama.generator.sampling import stack
from exllama.generator.sampling.job_sampler import JobSampler
from tests.generator.fake_model import EOS, VOCAB, logits_of


def answer_of(prompt: list[int], count: int, sampling: Sampling = GREEDY, ends: bool = False) -> list[int]:
    """The next `count` tokens after the prompt, or fewer when one of them ends the answer (it is included)."""
    tokens, sampler = list(prompt), JobSampler(sampling, sampling.seed or 0, VOCAB)
    while len(tokens) < len(prompt) + count:
        token = stack.sample(logits_of(tokens, ends), sampler, np.array(tokens, np.int32))
        assert token >= 0
        tokens.append(token)
        if token in EOS:
            break
    return tokens[len(prompt) :]


def guided_answer(prompt: list[int], negative: list[int], scale: float, count: int, sampling: Sampling) -> list[int]:
    """What such a job must answer, computed without generator, pages and batches."""
    answer: list[int] = []
    sampler = JobSampler(sampling, sampling.seed or 0, VOCAB)
    while len(answer) < count:
        own, other = logits_of(prompt + answer), logits_of(negative + answer)
        with np.errstate(invalid="ignore"):
            led = np.where(np.isneginf(own), own, other + np.float32(scale) * (own - other))
        answer.append(stack.sample(led, sampler, np.array(prompt + answer, np.int32)))
    return answer


def answer_without(prompt: list[int], count: int, sampling: Sampling, banned: list[str]) -> str:
    """What such a job must answer, made anew from the start of every banned string."""
    tokens, bans = list(prompt), dict[int, set[int]]()
    sampler = JobSampler(sampling, sampling.seed or 0, VOCAB)
    while len(tokens) < len(prompt) + count:
        logits = logits_of(tokens)
        logits[list(bans.get(len(tokens), ()))] = -np.inf
        tokens.append(stack.sample(logits, sampler, np.array(tokens, np.int32)))
        text = bytes(tokens[len(prompt) :]).decode().lower()
        begins = [len(prompt) + text.index(each.lower()) for each in banned if each.lower() in text]
        if begins:
            begin = min(begins)
            bans = {position: those for position, those in bans.items() if position <= begin}
            bans.setdefault(begin, set()).add(tokens[begin])
            del tokens[begin:]
    return bytes(tokens[len(prompt) :]).decode()
