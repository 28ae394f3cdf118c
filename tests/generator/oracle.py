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
