"""The order of the samplers, in float64: the definition that every faster implementation is compared with.

    1  repetition, presence, frequency penalty                       penalties.py   all logits
    2  logit_bias, DRY                                               masks.py, dry.py
    3  allowed_tokens, banned_tokens                                 masks.py
       temperature 0 ends here: the largest logit, the lowest id of several
    4  smoothing, then temperature or dynamic temperature            temperature.py
    5  top_k, top_p, top_a, min_p, tfs, typical_p                    truncation.py  candidates
    6  XTC                                                           truncation.py
    7  step 4 if temperature_last
    8  mirostat or adaptive-p                                        feedback.py
    9  the draw, skewed

Candidates are the tokens with a logit above -inf, ordered by (-logit, id). Every filter looks at the probabilities that
the ones before it left, summing to 1. The draw is the first candidate whose cumulative probability exceeds
u ** exp(-skew), u uniform in [0, 1): a function of seed and position (philox.py), stream 0; XTC uses stream 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from exllama.generator.sampling import feedback, masks, penalties, truncation
from exllama.generator.sampling.candidates import Candidates
from exllama.generator.sampling.dry import dry
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.penalties import Floats, Tokens
from exllama.generator.sampling.philox import uniform
from exllama.generator.sampling.settings import Sampling
from exllama.generator.sampling.temperature import dynamic, smooth, softmax, temper

NOT_A_TOKEN = -1  # the logits hold NaN or +inf
NO_TOKEN_LEFT = -2  # every logit is -inf, or masks leave no other
DRAW, XTC = 0, 1  # streams of random numbers


def adjust(logits: Floats, sampler: JobSampler, history: Tokens) -> Floats:
    """Steps 1 to 3. logits: (V,). history: all tokens before the one to be drawn."""
    sampling = sampler.sampling
    if sampling.has_penalties:
        window = history[-sampling.penalty_window :]
        seen = penalties.occurrences(window, len(logits), sampling.repetition_range, sampling.repetition_decay)
        logits = penalties.repetition(logits, seen, sampling.repetition_penalty)
        logits = penalties.presence(logits, seen, sampling.presence_penalty)
        logits = penalties.frequency(logits, seen, sampling.frequency_penalty)
    if len(sampler.bias_ids):
        logits = masks.bias(logits, sampler.bias_ids, sampler.bias_values)
    ids, values = dry_bias(sampler, history, len(logits))
    logits = masks.bias(logits, ids, values)
    return logits if sampler.mask is None else masks.mask(logits, sampler.mask)


def dry_bias(sampler: JobSampler, history: Tokens, vocab_size: int) -> tuple[NDArray[np.int32], Floats]:
    """What DRY adds: to which ids (n,), and values (n,)."""
    sampling = sampler.sampling
    if not sampling.dry_multiplier:
        return np.empty(0, np.int32), np.empty(0)
    window = history[-sampling.dry_range :]
    found = dry(window, sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, sampler.breakers)
    ids = [token for token in found if 0 <= token < vocab_size]
    return np.array(ids, np.int32), np.array([-found[token] for token in ids])


def order(logits: Floats) -> Candidates:
    """The candidates of logits (V,)."""
    ids = np.argsort(-logits, kind="stable")
    ids = ids[: int(np.count_nonzero(logits > -np.inf))]
    return Candidates(ids, logits[ids])


def tempered(candidates: Candidates, sampling: Sampling) -> Candidates:
    """Step 4 (or 7)."""
    logits = candidates.logits
    if sampling.smoothing_factor:
        logits = smooth(logits, sampling.smoothing_factor, sampling.smoothing_curve)
    temperature = sampling.temperature
    if sampling.max_temp:
        temperature = dynamic(logits, sampling.min_temp, sampling.max_temp, sampling.temp_exponent)
    return Candidates(candidates.ids, temper(logits, temperature))


def filtered(candidates: Candidates, sampling: Sampling, seed: int, position: int) -> Candidates:
    """Steps 4 to 7."""
    if not sampling.temperature_last:
        candidates = tempered(candidates, sampling)
    candidates = candidates.kept(truncation.top_k(candidates.logits, sampling.top_k))
    filters = (
        (truncation.top_p, sampling.top_p, 1.0),
        (truncation.top_a, sampling.top_a, 0.0),
        (truncation.min_p, sampling.min_p, 0.0),
        (truncation.tail_free, sampling.tfs, 1.0),
        (truncation.typical, sampling.typical_p, 1.0),
    )
    for function, value, off in filters:
        if value != off:
            candidates = candidates.kept(function(softmax(candidates.logits), value))
    if sampling.xtc_probability:
        u, probabilities = uniform(seed, position, XTC), softmax(candidates.logits)
        keep = truncation.exclude_top(probabilities, sampling.xtc_probability, sampling.xtc_threshold, u)
        candidates = candidates.kept(keep)
    return tempered(candidates, sampling) if sampling.temperature_last else candidates


def steered(candidates: Candidates, sampler: JobSampler, position: int) -> Candidates:
    """Step 8, for the state before the draw at `position`."""
    sampling = sampler.sampling
    if not sampling.is_stateful:
        return candidates
    state, probabilities = sampler.state_at(position), softmax(candidates.logits)
    if sampling.mirostat_mode:
        return candidates.kept(feedback.mirostat_keep(probabilities, state))
    return Candidates(candidates.ids, feedback.adaptive_logits(probabilities, state, sampling.adaptive_target))


def draw(probabilities: Floats, u: float, skew: float) -> int:
    """Step 9: the index of a candidate; u in [0, 1)."""
    cumulative = np.cumsum(probabilities)
    target = u ** math.exp(-skew) * cumulative[-1]
    return min(int(np.searchsorted(cumulative, target, side="right")), len(probabilities) - 1)


def sample(logits: NDArray[np.float32], sampler: JobSampler, history: Tokens) -> int:
    """The token after history (n,), which has all tokens of the sequence; the state of the sampler moves on.

    logits: (V,). Returns NOT_A_TOKEN or NO_TOKEN_LEFT where there is none.
    """
    position, sampling = len(history), sampler.sampling
    peak = logits.max()  # the largest of several is NaN if one is
    if np.isnan(peak) or peak == np.inf:
        return NOT_A_TOKEN
    candidates = order(adjust(logits.astype(np.float64), sampler, history))
    if len(candidates.ids) == 0:
        return NO_TOKEN_LEFT
    if sampling.is_greedy:
        return int(candidates.ids[0])
    left = filtered(candidates, sampling, sampler.seed, position)
    final = steered(left, sampler, position)
    chosen = int(final.ids[draw(softmax(final.logits), uniform(sampler.seed, position, DRAW), sampling.skew)])
    if sampling.is_stateful:
        _learn(sampler, position, float(softmax(left.logits)[left.ids == chosen][0]))
    return chosen


def distribution(logits: NDArray[np.float32], sampler: JobSampler, history: Tokens) -> Candidates:
    """The candidates that can be drawn after history and their log-probabilities (n,), for logits with a token left.

    A greedy job has one candidate. Skew, which is no distribution of its own, is left out.
    """
    candidates = order(adjust(logits.astype(np.float64), sampler, history))
    if sampler.sampling.is_greedy:
        return Candidates(candidates.ids[:1], np.zeros(1))
    left = filtered(candidates, sampler.sampling, sampler.seed, len(history))
    final = steered(left, sampler, len(history))
    with np.errstate(divide="ignore"):
        return Candidates(final.ids, np.log(softmax(final.logits)))


def _learn(sampler: JobSampler, position: int, probability: float) -> None:
    sampling, state = sampler.sampling, sampler.state_at(position)
    if sampling.mirostat_mode:
        state = feedback.mirostat_next(state, probability, sampling.mirostat_tau, sampling.mirostat_eta)
    else:
        state = feedback.adaptive_next(state, probability, sampling.adaptive_decay)
    sampler.keep_state(position, state)
