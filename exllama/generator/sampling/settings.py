"""How the next token is chosen from the logits: a value object, the same for any number of jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from exllama.errors import UsageError

# field -> (lowest, highest, lowest itself allowed); None: no bound on that side
_RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 100.0, True),
    "top_k": (0, 2**31 - 1, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, 100.0, False),
    "repetition_range": (0, 2**31 - 1, True),
    "seed": (0, 2**64 - 1, True),
}


@dataclass(frozen=True)
class Sampling:
    """Every default is neutral: `Sampling()` draws from the distribution that the model predicts.

    Steps, in this order:
    repetition_penalty  logits of tokens that occur in the last `repetition_range` tokens (0: in all of them, prompt
                        included) are divided by it if positive, else multiplied (Keskar et al. 2019); 1: off
    temperature         logits are divided by it; 0: the largest logit is taken, the rest below does not matter
    top_k               the k most probable tokens stay; 0: off
    top_p               of these, the fewest stay whose share reaches p (Holtzman et al. 2020); 1: off
    min_p               of these, those stay that are at least min_p times as probable as the first; 0: off
    seed                random numbers are a function of the seed and of the position in the sequence, so that a seed
                        repeats whoever shares the batch; None: a new one per job

    Equal logits are ordered by token id. Raises UsageError naming the field that is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_range: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            check_range(field.name, getattr(self, field.name), whole=field.type.startswith("int"))

    @property
    def is_greedy(self) -> bool:
        """No random number is needed."""
        return self.temperature == 0.0


def check_range(name: str, value: object, whole: bool) -> None:
    """Raises UsageError unless value is a number (a whole one) within the range of the field `name`."""
    if value is None and name == "seed":
        return
    lowest, highest, inclusive = _RANGES[name]
    kind = "a whole number" if whole else "a number"
    wanted = f"{kind} {'from' if inclusive else 'above'} {lowest:g} to {highest:g}"
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right_type or not isinstance(value, (int, float)) or math.isnan(value):
        raise UsageError(f"{name} is {value!r}, expected {wanted}")
    if not lowest <= value <= highest or (value == lowest and not inclusive):
        raise UsageError(f"{name} is {value!r}, expected {wanted}")


GREEDY = Sampling(temperature=0.0)
