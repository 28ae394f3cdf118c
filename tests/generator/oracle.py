"""What a job must answer, computed without generator, scheduler, pages and native code."""

from __future__ import annotations

import numpy as np

from exllama.generator import GREEDY, Sampling
from exllama.generator.sampling import filters
from tests.generator.fake_model import EOS, logits_of


def answer_of(prompt: list[int], count: int, sampling: Sampling = GREEDY, ends: bool = False) -> list[int]:
    """The next `count` tokens after the prompt, or fewer when one of them ends the answer (it is included)."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        history = np.array(tokens[-sampling.repetition_range :], np.int32)
        if sampling.repetition_penalty == 1.0:
            history = history[:0]
        token = filters.sample(logits_of(tokens, ends), sampling, len(tokens), history)
        assert token is not None
        tokens.append(token)
        if token in EOS:
            break
    return tokens[len(prompt) :]
