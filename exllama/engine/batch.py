"""What one forward pass works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Rows of one or more sequences; those of one sequence are adjacent and in order of position.

    token_ids, positions, sequences: (R,) int32, a row's token, its position, and the row of page_table that its
    sequence uses. page_table: (S, P) int32; page_table[s, i] holds positions 256 i .. 256 i + 255 of sequence s.
    logit_rows: (L,) int32, the rows whose logits are wanted. Native code checks every number before it follows one.
    """

    token_ids: Ints
    positions: Ints
    sequences: Ints
    page_table: Ints
    logit_rows: Ints
