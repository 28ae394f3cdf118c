"""Samplers as their sources define them, token by token in plain Python floats: the oracle of generator/sampling.

A distribution is a list of (token, probability), most probable first, equal ones by token. Nothing here is shared with
the engine but the names of the settings.
"""

from __future__ import annotations

import math

Shares = list[tuple[int, float]]


def shares_of(logits: dict[int, float]) -> Shares:
    """Softmax of the finite logits, in order."""
    finite = {token: logit for token, logit in logits.items() if logit > -math.inf}
    peak = max(finite.values())
    weights = {token: math.exp(logit - peak) for token, logit in finite.items()}
    total = math.fsum(weights.values())
    ordered = sorted(finite, key=lambda token: (-finite[token], token))
    return [(token, weights[token] / total) for token in ordered]


def again(kept: Shares) -> Shares:
    """Summing to 1 after a filter."""
    total = math.fsum(share for _, share in kept)
    return [(token, share / total) for token, share in kept]


def penalised(
    logits: list[float], history: list[int], factor: float, presence: float, frequency: float, sustain: int, decay: int
) -> list[float]:
    """CTRL (Keskar et al. 2019, section 4.1) and the formula of OpenAI's API, with occurrences that fade."""
    out = []
    for token, logit in enumerate(logits):
        strengths = []
        for back, seen in enumerate(reversed(history), start=1):
            if seen == token:
                late = max(0, back - sustain) if sustain else 0
                strengths.append(max(0.0, 1.0 - late / (decay + 1)))
        if strengths and max(strengths) > 0:
            nearest = max(strengths)
            by = 1 + nearest * (factor - 1)
            logit = logit / by if logit > 0 else logit * by
            logit -= presence * nearest + frequency * sum(strengths)
        out.append(logit)
    return out


def dry_penalties(
    history: list[int], multiplier: float, base: float, allowed: int, breakers: set[int], vocab: int
) -> dict[int, float]:
    """The description of pull request 5677: how long is the end of the text that `token` followed before?"""
    penalties = {}
    for token in range(vocab):
        longest = 0
        for place, seen in enumerate(history):
            if seen != token or place == 0:
                continue
            length = 0
            while length < place and history[place - 1 - length] == history[-1 - length]:
                if history[-1 - length] in breakers or length == 50:
                    break
                length += 1
            longest = max(longest, length)
        if longest >= allowed:
            penalties[token] = multiplier * base ** (longest - allowed)
    return penalties


def smoothed(logits: list[float], factor: float, curve: float) -> list[float]:
    """Pull request 5551 and its successor with the curve."""
    peak = max(logits)
    k, s = (3 - curve) / 2, (curve - 1) / 2
    return [-(k * factor * (x - peak) ** 2) + s * factor * (x - peak) ** 3 + peak for x in logits]


def dynamic_temperature(shares: Shares, lowest: float, highest: float, exponent: float) -> float:
    """The entropy's share of the highest possible entropy says where between both temperatures."""
    if len(shares) == 1:
        return lowest + (highest - lowest) * 0.0**exponent
    entropy = -sum(share * math.log(share) for _, share in shares if share > 0)
    return lowest + (highest - lowest) * (entropy / math.log(len(shares))) ** exponent


def top_k(shares: Shares, k: int) -> Shares:
    return shares[:k] if k else shares


def top_p(shares: Shares, p: float) -> Shares:
    kept: Shares = []
    for each in shares:
        kept.append(each)
        if math.fsum(share for _, share in kept) >= p:
            break
    return kept


def min_p(shares: Shares, p: float) -> Shares:
    return [each for each in shares if each[1] >= p * shares[0][1]]


def top_a(shares: Shares, a: float) -> Shares:
    return [each for i, each in enumerate(shares) if i == 0 or each[1] >= a * shares[0][1] ** 2]


def tail_free(shares: Shares, z: float) -> Shares:
    """First derivative, second derivative, normalised, summed up; the first token beyond the sum is the tail's."""
    if len(shares) < 3:
        return shares
    first = [shares[i + 1][1] - shares[i][1] for i in range(len(shares) - 1)]
    second = [abs(first[i + 1] - first[i]) for i in range(len(first) - 1)]
    total = sum(second)
    if total == 0:
        return shares
    kept, cumulative = [shares[0]], 0.0
    for i, each in enumerate(second):
        cumulative += each / total
        if cumulative > z:
            break
        kept.append(shares[i + 1])
    return kept


def typical(shares: Shares, p: float) -> Shares:
    """Meister et al. 2022, equation 12: the smallest set with mass p of those nearest to the conditional entropy."""
    entropy = -sum(share * math.log(share) for _, share in shares if share > 0)

    def distance(each: tuple[int, float]) -> float:
        return abs(-math.log(each[1]) - entropy) if each[1] > 0 else math.inf

    kept = set()
    mass = 0.0
    for index in sorted(range(len(shares)), key=lambda i: distance(shares[i])):
        kept.add(index)
        mass += shares[index][1]
        if mass >= p:
            break
    return [each for i, each in enumerate(shares) if i in kept]


def xtc(shares: Shares, threshold: float) -> Shares:
    """The top choices, all but the last that is viable, are gone."""
    viable = [each for each in shares if each[1] >= threshold]
    return shares[max(len(viable) - 1, 0) :]


def mirostat(shares: Shares, mu: float) -> Shares:
    """Basu et al. 2021, algorithm 2, line 3."""
    return [each for i, each in enumerate(shares) if i == 0 or (each[1] > 0 and -math.log2(each[1]) <= mu)]


def adaptive(shares: Shares, target: float, past: list[float], decay: float) -> Shares:
    """Pull request 17927; past: probabilities of drawn tokens in order, after endless ones at target."""
    weight = 1.0
    weighted = total = 0.0
    for probability in reversed(past):
        weighted += weight * probability
        total += weight
        weight *= decay
    weighted += weight * target / (1 - decay)
    total += weight / (1 - decay)
    aim = min(max(2 * target - weighted / total, 0.0), 1.0)
    logits = {}
    for token, share in shares:
        distance = abs(share - aim) / 0.3
        logits[token] = 5 - 10 * distance * distance / (1 + distance)
    made = dict(shares_of(logits))
    return [(token, made[token]) for token, _ in shares]


def drawn(shares: Shares, u: float, skew: float = 0.0) -> int:
    """The inverse of the cumulative distribution."""
    target, cumulative = u ** math.exp(-skew), 0.0
    for token, share in shares:
        cumulative += share
        if cumulative > target:
            return token
    return shares[-1][0]
