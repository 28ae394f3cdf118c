"""What the generator asks of a constraint; the library behind it is the affair of one file (guidance.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]  # bit i of word w: token 32 w + i is allowed


class Constraint(Protocol):
    """The state of one answer. Every token that is appended is accepted in order, so drafts need no care of their own:
    the mask after a draft is asked for once the draft was drawn."""

    @property
    def error(self) -> str:
        """Why the mask allows nothing; empty while it allows something."""
        ...

    def mask(self) -> Words:
        """The tokens that may follow, (ceil(V / 32),) uint32; valid until the next accept or rollback."""
        ...

    def accept(self, token: int) -> None:
        """`token`, which the mask allowed, was appended."""
        ...

    def rollback(self, count: int) -> None:
        """The last `count` accepted tokens were taken back."""
        ...


class AllOf:
    """Several constraints at once: a token is allowed if all of them allow it."""

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self._constraints = tuple(constraints)

    @property
    def error(self) -> str:
        """See Constraint."""
        own = next((constraint.error for constraint in self._constraints if constraint.error), "")
        return own or ("" if self.mask().any() else "no token continues what all grammars of the job describe")

    def mask(self) -> Words:
        """See Constraint."""
        words: Words = self._constraints[0].mask().copy()
        for constraint in self._constraints[1:]:
            words &= constraint.mask()
        return words

    def accept(self, token: int) -> None:
        """See Constraint."""
        for constraint in self._constraints:
            constraint.accept(token)

    def rollback(self, count: int) -> None:
        """See Constraint."""
        for constraint in self._constraints:
            constraint.rollback(count)


def apply_mask(logits: NDArray[np.float32], words: Words) -> None:
    """Sets the logits (V,) of all tokens that are not allowed to -inf."""
    bits = np.unpackbits(words.view(np.uint8), count=len(logits), bitorder="little")
    logits[bits == 0] = -np.inf
