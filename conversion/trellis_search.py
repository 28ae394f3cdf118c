"""The search for EXL3 bit streams in native code; kernels/cpu/trellis_search.h says how it works."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exllama import ops
from exllama.errors import ConversionError

Floats = NDArray[np.float32]


@functools.cache
def team(threads: int) -> Any:
    """Threads of conversion alone: those of a model's plans may be at work in another thread of Python."""
    return ops.native().Team(threads)


class TrellisSearch:
    """Finds, for each tile of 16 x 16 numbers, the bit stream that decodes to what is nearest.

    bits: 1 to 8, or 1.5, 2.5, 3.5 with the codebook "mul1". threads: None for all. level: of instructions, None for the
    best of this machine. The result depends on neither of the two. Raises ConversionError.
    """

    def __init__(
        self, bits: float, codebook: str = "mul1", threads: int | None = None, level: str | None = None
    ) -> None:
        if bits * 2 != int(bits * 2):
            raise ConversionError(f"EXL3 has no rate of {bits} bits: take 1 to 8, or 1.5, 2.5, 3.5")
        try:
            self._search = ops.native().TrellisSearch(int(bits * 2), codebook, level or ops.cpu_level())
        except ValueError as error:
            raise ConversionError(f"EXL3 with {bits} bits and the codebook {codebook!r}: {error}") from error
        self._team = team(threads or ops.default_threads())

    def quantize(self, targets: Floats, feedback: Floats | None = None) -> tuple[NDArray[np.int16], Floats]:
        """targets: (rows, columns), multiples of 16, of about the codebook's spread (1, of mul1).

        feedback: (rows, rows). Blocks of 16 rows are quantized from the last to the first, after
        targets[r] += sum of feedback[j, r] * (targets[j] - values[j]) over the rows j of later blocks.
        Returns tiles as in a file, (rows / 16, columns / 16, 16 * bits), and the values (rows, columns) they decode to.
        """
        if not np.isfinite(targets).all():
            raise ConversionError("a weight to quantize is NaN or infinite")
        words, values = self._search.quantize(self._team, np.ascontiguousarray(targets, np.float32), feedback)
        return words.view(np.int16), values
