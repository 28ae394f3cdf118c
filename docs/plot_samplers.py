"""`python -m docs.plot_samplers`: draws docs/sampling.png: each sampler on one distribution. Needs [plots]."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot

from exllama.generator.sampling import Sampling, stack
from exllama.generator.sampling.job_sampler import JobSampler

TOKENS = 24
LOGITS = np.log(1.0 / np.arange(1, TOKENS + 1) ** 1.3).astype(np.float32)  # Zipf's law, the most probable token first
HISTORY = np.array([1, 7, 3, 1, 9, 0, 1, 7], np.int32)  # "1 7" was followed by 3
PANELS = {
    "none": {},
    "temperature=0.6": {"temperature": 0.6},
    "temperature=1.8": {"temperature": 1.8},
    "min_temp=0.5 max_temp=1.5": {"min_temp": 0.5, "max_temp": 1.5},
    "smoothing_factor=0.3": {"smoothing_factor": 0.3},
    "top_k=8": {"top_k": 8},
    "top_p=0.8": {"top_p": 0.8},
    "top_a=0.3": {"top_a": 0.3},
    "min_p=0.1": {"min_p": 0.1},
    "tfs=0.95": {"tfs": 0.95},
    "typical_p=0.5": {"typical_p": 0.5},
    "xtc_probability=1": {"xtc_probability": 1.0},
    "repetition_penalty=1.5": {"repetition_penalty": 1.5},
    "presence_penalty=1": {"presence_penalty": 1.0},
    "frequency_penalty=1": {"frequency_penalty": 1.0},
    "dry_multiplier=2": {"dry_multiplier": 2.0},
    "mirostat_mode=2 mirostat_tau=1.5": {"mirostat_mode": 2, "mirostat_tau": 1.5},
    "adaptive_target=0.1": {"adaptive_target": 0.1},
    "skew=0.7": {"skew": 0.7},
    "logit_bias={5: 2} banned=[0]": {"logit_bias": {5: 2.0}, "banned_tokens": [0]},
}


def shares(settings: dict[str, object]) -> np.ndarray:
    """The probability (TOKENS,) of every token to be drawn after HISTORY."""
    sampling = Sampling(**settings)  # type: ignore[arg-type]
    found = stack.distribution(LOGITS, JobSampler(sampling, 0, TOKENS), HISTORY)
    edges = np.concatenate([[0.0], np.cumsum(np.exp(found.logits))]) ** np.exp(sampling.skew)  # u ** exp(-skew) < edge
    drawn = np.zeros(TOKENS)
    drawn[found.ids] = np.diff(edges)
    return drawn


def main() -> None:
    figure, axes = pyplot.subplots(5, 4, figsize=(12, 11), sharex=True, layout="constrained")
    before = shares({})
    for axis, (title, settings) in zip(axes.flat, PANELS.items(), strict=True):
        axis.bar(range(TOKENS), shares(settings), color="tab:blue")
        axis.step(range(TOKENS), before, where="mid", color="black", linewidth=0.8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.supxlabel("token, by its probability without samplers (the line)")
    figure.supylabel("probability of being drawn")
    figure.savefig(Path(__file__).with_name("sampling.png"), dpi=75)


if __name__ == "__main__":
    main()
