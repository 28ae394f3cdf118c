"""What a job must answer, computed without generator, scheduler, pages and native code."""

from __future__ import annotations

import numpy as np

from exllama.generator import GREEDY, Sampling
from exllama.generator.sampling import stack
from exllama.generator.sampling.job_sampler import JobSampler
from tests.generator.fake_model import EOS, MASK, VOCAB, logits_from, mix


class Reader:
    """fake_model.logits_of for a history that mostly grows, without reading all of it for every token."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._sums = [(0, 0)]  # after n tokens: state of the model, sum of states

    def logits(self, tokens: list[int], ends: bool = False) -> np.ndarray:
        same = len(self._tokens)
        while self._tokens[:same] != tokens[:same]:
            same -= 1
        del self._tokens[same:], self._sums[same + 1 :]
        for token in tokens[same:]:
            state, total = self._sums[-1]
            state = mix(state ^ (token + 1))
            self._sums.append((state, (total + state) & MASK))
            self._tokens.append(token)
        return logits_from(self._sums[len(tokens)][1], ends)


def answer_of(prompt: list[int], count: int, sampling: Sampling = GREEDY, ends: bool = False) -> list[int]:
    """The next `count` tokens after the prompt, or fewer when one of them ends the answer (it is included)."""
    tokens, sampler, reader = list(prompt), JobSampler(sampling, sampling.seed or 0, VOCAB), Reader()
    while len(tokens) < len(prompt) + count:
        token = stack.sample(reader.logits(tokens, ends), sampler, np.array(tokens, np.int32))
        assert token >= 0
        tokens.append(token)
        if token in EOS:
            break
    return tokens[len(prompt) :]


def guided_answer(prompt: list[int], negative: list[int], scale: float, count: int, sampling: Sampling) -> list[int]:
    """What such a job must answer, computed without generator, pages and batches."""
    answer: list[int] = []
    readers = Reader(), Reader()
    sampler = JobSampler(sampling, sampling.seed or 0, VOCAB)
    while len(answer) < count:
        own, other = readers[0].logits(prompt + answer), readers[1].logits(negative + answer)
        with np.errstate(invalid="ignore"):
            led = np.where(np.isneginf(own), own, other + np.float32(scale) * (own - other))
        answer.append(stack.sample(led, sampler, np.array(prompt + answer, np.int32)))
    return answer


def answer_without(prompt: list[int], count: int, sampling: Sampling, banned: list[str]) -> str:
    """What such a job must answer, made anew from the start of every banned string."""
    tokens, bans, reader = list(prompt), dict[int, set[int]](), Reader()
    sampler = JobSampler(sampling, sampling.seed or 0, VOCAB)
    while len(tokens) < len(prompt) + count:
        logits = reader.logits(tokens)
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
