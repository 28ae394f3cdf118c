"""What one job needs to draw its tokens: settings, seed, tables made once, and the state of its samplers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from exllama.errors import UsageError
from exllama.generator.sampling import feedback
from exllama.generator.sampling.feedback import State
from exllama.generator.sampling.logprobs import Records, Wish
from exllama.generator.sampling.masks import make_mask
from exllama.generator.sampling.settings import Sampling

_NO_WISH = Wish()


class JobSampler:
    """Belongs to one job alone; settings may be shared by any number of them.

    mask: which tokens can be drawn (masks.make_mask) or None. bias_ids, bias_values: logit_bias. breakers: token ids
    that DRY does not reach across. records: what the job wants to learn of its tokens, or None.
    """

    def __init__(
        self, sampling: Sampling, seed: int, vocab_size: int, breakers: Collection[int] = (), wish: Wish = _NO_WISH
    ) -> None:
        """Raises UsageError for a token id outside of the vocabulary."""
        self.sampling, self.seed, self.breakers = sampling, seed, frozenset(breakers)
        self.vocab_size = vocab_size
        self.records = Records(wish) if wish != _NO_WISH else None
        self.mask = make_mask(vocab_size, sampling.allowed_tokens, sampling.banned_tokens)
        pairs = sorted(dict(sampling.logit_bias).items())
        if pairs and pairs[-1][0] >= vocab_size:
            raise UsageError(f"logit_bias is for token {pairs[-1][0]}, expected ids up to {vocab_size - 1}")
        self.bias_ids = np.array([token for token, _ in pairs], np.int32)
        self.bias_values = np.array([value for _, value in pairs], np.float64)
        python = sampling.is_stateful or sampling.tfs < 1.0 or sampling.typical_p < 1.0
        self.is_native = sampling.is_greedy or not python  # kernels/cpu/sampling.cpp can do all of it
        self._guessing: JobSampler | None = None
        self._states: list[tuple[int, State]] = []  # (position, state for the draw at it or later), ascending

    def guessing(self, vocab_size: int) -> JobSampler:
        """For a drafter with that vocabulary: the same draws as far as neither state nor Python functions are needed.

        A guess changes no state and leaves no record.
        """
        if self._guessing is None or self._guessing.vocab_size != vocab_size:
            own = self.sampling
            sampling = replace(
                own, mirostat_mode=0, adaptive_target=1.0, tfs=1.0, typical_p=1.0,
                logit_bias={token: bias for token, bias in dict(own.logit_bias).items() if token < vocab_size},
                banned_tokens=[token for token in own.banned_tokens if token < vocab_size],
                allowed_tokens=[t for t in own.allowed_tokens or () if t < vocab_size and t not in own.banned_tokens]
                or None,
            )  # fmt: skip
            self._guessing = JobSampler(sampling, self.seed, vocab_size, self.breakers)
        return self._guessing

    def state_at(self, position: int) -> State:
        """The state that the draw at `position` begins with; what was drawn there or later is forgotten.

        So a rewind, a rejected draft or a preempted job needs no care: drawing a position again is enough.
        """
        while self._states and self._states[-1][0] > position:
            self._states.pop()
        if self._states:
            return self._states[-1][1]
        sampling = self.sampling
        if sampling.mirostat_mode:
            return feedback.mirostat_start(sampling.mirostat_tau)
        return feedback.adaptive_start(sampling.adaptive_target, sampling.adaptive_decay)

    def keep_state(self, position: int, state: State) -> None:
        """The state after the draw at `position`."""
        self._states.append((position + 1, state))
