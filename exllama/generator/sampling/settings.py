"""How the next token is chosen from the logits: a value object, the same for any number of jobs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from exllama.errors import UsageError

_LARGEST = 2**31 - 1
MAX_BREAKERS = 64


class Range(NamedTuple):
    """Numbers from lowest to highest; `above`: lowest itself is not one of them."""

    lowest: float
    highest: float
    above: bool = False


RANGES: dict[str, Range] = {
    "temperature": Range(0.0, 100.0),
    "top_k": Range(0, _LARGEST),
    "top_p": Range(0.0, 1.0, above=True),
    "min_p": Range(0.0, 1.0),
    "repetition_penalty": Range(0.0, 100.0, above=True),
    "repetition_range": Range(0, _LARGEST),
    "seed": Range(0, 2**64 - 1),
    "frequency_penalty": Range(-100.0, 100.0),
    "presence_penalty": Range(-100.0, 100.0),
    "repetition_decay": Range(0, _LARGEST),
    "dry_multiplier": Range(0.0, 100.0),
    "dry_base": Range(1.0, 100.0),
    "dry_allowed_length": Range(1, _LARGEST),
    "dry_range": Range(0, _LARGEST),
    "min_temp": Range(0.0, 100.0),
    "max_temp": Range(0.0, 100.0),
    "temp_exponent": Range(0.0, 100.0),
    "smoothing_factor": Range(0.0, 100.0),
    "smoothing_curve": Range(1.0, 3.0),
    "top_a": Range(0.0, 1.0),
    "tfs": Range(0.0, 1.0, above=True),
    "typical_p": Range(0.0, 1.0, above=True),
    "xtc_probability": Range(0.0, 1.0),
    "xtc_threshold": Range(0.0, 1.0, above=True),
    "mirostat_mode": Range(0, 2),
    "mirostat_tau": Range(0.0, 100.0, above=True),
    "mirostat_eta": Range(0.0, 1.0),
    "adaptive_target": Range(0.0, 1.0),
    "adaptive_decay": Range(0.0, 0.99),
    "skew": Range(-10.0, 10.0),
}
BIAS = Range(-1000.0, 1000.0)


@dataclass(frozen=True)
class Sampling:
    """Every default is neutral: `Sampling()` draws from the distribution that the model predicts.

    The fields, each "off" at its default. What they do to the logits, in which order, is written in stack.py; formulas
    and sources stand in the file of each family beside it, and docs/sampling.md explains them all.

    repetition_penalty, presence_penalty, frequency_penalty  of tokens among the last repetition_range ones (0: of the
                        whole sequence, prompt included), fading out over the repetition_decay tokens before these
    logit_bias          {token id: added to its logit}
    dry_*               against repeating sequences; breakers are strings or token ids that no repetition reaches across
    allowed_tokens, banned_tokens   ids that alone can, or that cannot, be drawn
    smoothing_factor, smoothing_curve   logits fall off as a polynomial of their distance from the largest
    temperature         logits are divided by it; 0: the largest logit is taken, and nothing below this line matters
    min_temp, max_temp, temp_exponent   max_temp above 0: a temperature between them, by entropy, in its place
    top_k, top_p, top_a, min_p, tfs, typical_p   filters, one after the other, of the more probable tokens
    xtc_probability, xtc_threshold   how often all but the last of the tokens above the threshold are excluded
    temperature_last    smoothing and temperature come after the filters
    mirostat_mode       2: mirostat 2, keeps the surprise near mirostat_tau bits with learning rate mirostat_eta
    adaptive_target     below 1: adaptive-p, keeps the probability of drawn tokens near it, over a history of about
                        1 / (1 - adaptive_decay) tokens
    skew                above 0 draws less, below 0 more probable tokens
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
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_decay: int = 0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()  # kept as pairs, ascending
    allowed_tokens: Collection[int] | None = None  # kept as a tuple, ascending
    banned_tokens: Collection[int] = ()
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0
    dry_sequence_breakers: Collection[str | int] = ("\n", ":", '"', "*")
    min_temp: float = 0.0
    max_temp: float = 0.0
    temp_exponent: float = 1.0
    smoothing_factor: float = 0.0
    smoothing_curve: float = 1.0
    temperature_last: bool = False
    top_a: float = 0.0
    tfs: float = 1.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = 1.0
    adaptive_decay: float = 0.9
    skew: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in RANGES:
                check_range(field.name, getattr(self, field.name), whole=field.type.startswith("int"))
        if not isinstance(self.temperature_last, bool):
            raise UsageError(f"temperature_last is {self.temperature_last!r}, expected True or False")
        self._keep("logit_bias", _bias(self.logit_bias))
        self._keep("banned_tokens", _ids("banned_tokens", self.banned_tokens))
        self._keep("dry_sequence_breakers", _breakers(self.dry_sequence_breakers))
        if self.allowed_tokens is not None:
            self._keep("allowed_tokens", _ids("allowed_tokens", self.allowed_tokens))
        self._check_together()

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_together(self) -> None:
        if self.allowed_tokens is not None and set(self.allowed_tokens) <= set(self.banned_tokens):
            raise UsageError(
                f"allowed_tokens is {self.allowed_tokens!r}, expected at least one id that is not in banned_tokens"
            )
        if self.mirostat_mode == 1:
            raise UsageError("mirostat_mode is 1, expected 2 (mirostat 2) or 0 (off)")
        if self.max_temp > 0.0 and self.min_temp > self.max_temp:
            raise UsageError(f"min_temp is {self.min_temp!r}, expected at most max_temp, which is {self.max_temp!r}")
        if self.mirostat_mode and self.adaptive_target < 1.0:
            raise UsageError(
                f"adaptive_target is {self.adaptive_target!r} beside mirostat, expected 1 (off): both steer the draw"
            )

    @property
    def is_greedy(self) -> bool:
        """No random number is needed."""
        return self.temperature == 0.0

    @property
    def is_stateful(self) -> bool:
        """A draw depends on earlier draws, not on their tokens alone."""
        return not self.is_greedy and (self.mirostat_mode != 0 or self.adaptive_target < 1.0)

    @property
    def has_penalties(self) -> bool:
        """Tokens of the sequence change the logits, DRY apart."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def penalty_window(self) -> int:
        """How many of the last tokens the penalties look at; 0: at all."""
        return self.repetition_range + self.repetition_decay if self.repetition_range else 0


def check_range(name: str, value: object, whole: bool) -> None:
    """Raises UsageError unless value is a number (a whole one) within the range of the field `name`."""
    if value is None and name == "seed":
        return
    lowest, highest, above = RANGES[name]
    kind = "a whole number" if whole else "a number"
    wanted = f"{kind} {'above' if above else 'from'} {lowest:g} to {highest:g}"
    if not _is_number(value, whole) or not lowest <= value <= highest or (value == lowest and above):  # type: ignore[operator]
        raise UsageError(f"{name} is {value!r}, expected {wanted}")


def _is_number(value: object, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return isinstance(value, int) or not math.isnan(value)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _ids(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise UsageError(f"{name} is {value!r}, expected token ids")
    ids = tuple(value)
    for entry in ids:
        if not _is_id(entry):
            raise UsageError(f"{name} holds {entry!r}, but is expected to hold token ids")
    return tuple(sorted(set(ids)))


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise UsageError(f"logit_bias is {value!r}, expected token ids with numbers: {{id: bias}}") from None
    for token, bias in pairs.items():
        if not _is_id(token):
            raise UsageError(f"logit_bias is for {token!r}, expected a token id")
        if not _is_number(bias, whole=False) or not BIAS.lowest <= bias <= BIAS.highest:
            raise UsageError(
                f"logit_bias is {bias!r} for token {token}, expected a number from {BIAS.lowest:g} to {BIAS.highest:g}"
            )
    return tuple(sorted((token, float(bias)) for token, bias in pairs.items()))


def _breakers(value: object) -> tuple[str | int, ...]:
    name = "dry_sequence_breakers"
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise UsageError(f"{name} is {value!r}, expected a list of strings and token ids")
    breakers = tuple(value)
    if len(breakers) > MAX_BREAKERS:
        raise UsageError(f"{name} has {len(breakers)} entries, expected at most {MAX_BREAKERS}")
    for entry in breakers:
        if not _is_id(entry) and (not isinstance(entry, str) or entry == ""):
            raise UsageError(f"{name} holds {entry!r}, but non-empty strings and token ids are expected")
    return breakers


GREEDY = Sampling(temperature=0.0)
