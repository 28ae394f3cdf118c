"""Tokens that can be drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Candidates(NamedTuple):
    """ids (n,), most probable first until adaptive-p; their logits (n,), of which differences alone mean something."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float64]

    def kept(self, keep: NDArray[np.bool_]) -> Candidates:
        """Those for which keep (n,) holds."""
        return self if keep.all() else Candidates(self.ids[keep], self.logits[keep])
