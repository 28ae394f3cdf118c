"""What a decode step costs beside the model: scheduling, sampling, detokenizing, events.

    python benchmarks/step_overhead.py [-m MODEL] [--batch 16] [--steps 100] [--threads 2]

Runs `batch` jobs at once and measures every step and, within it, the forward pass; prints medians per step and the
share of the rest, for greedy decoding, the common sampling stack, and stacks that need more. One line per stack.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from exllama.engine.batch import Batch
from exllama.engine.runner import Runner
from exllama.generator import Generator, Job, Prefill, Sampling

COMMON = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
STACKS = {
    "greedy": Sampling(temperature=0.0),
    "common": Sampling(**COMMON, repetition_range=256),
    "temperature alone": Sampling(temperature=0.8),
    "common + presence + DRY + XTC": Sampling(
        **COMMON, presence_penalty=0.1, dry_multiplier=0.8, xtc_probability=0.5, repetition_range=256
    ),
    "typical (Python)": Sampling(temperature=0.8, typical_p=0.9),
}


class Watch:
    """Times the forward pass of a runner."""

    def __init__(self, runner: Runner) -> None:
        self._forward, self.seconds = runner.forward, 0.0
        runner.forward = self.forward  # type: ignore[method-assign]

    def forward(self, batch: Batch) -> torch.Tensor:
        begin = time.perf_counter()
        logits = self._forward(batch)
        self.seconds = time.perf_counter() - begin
        return logits


def measure(generator: Generator, watch: Watch, sampling: Sampling, batch: int, steps: int) -> dict[str, float]:
    """Medians over steps in which every job draws a token."""
    jobs = [
        generator.enqueue(Job(f"Number {i}: write a story about", steps + 8, sampling, seed=i)) for i in range(batch)
    ]
    whole, model = [], []
    while generator.active and len(whole) < steps:
        begin = time.perf_counter()
        events = generator.step()
        seconds = time.perf_counter() - begin
        if len({event.job for event in events}) == batch and not any(isinstance(event, Prefill) for event in events):
            whole.append(seconds)
            model.append(watch.seconds)
    for job in jobs:
        generator.cancel(job)
    generator.step()
    rest = statistics.median(a - b for a, b in zip(whole, model, strict=True))
    return {
        "steps": len(whole),
        "step_ms": round(1e3 * statistics.median(whole), 3),
        "rest_ms": round(1e3 * rest, 3),
        "rest_share": round(rest / statistics.median(whole), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    tokens = args.batch * 512
    with Generator.from_pretrained(
        args.model, cache_tokens=tokens, max_batch_size=args.batch, threads=args.threads
    ) as generator:
        watch = Watch(generator._runner)  # type: ignore[arg-type]
        measure(generator, watch, STACKS["greedy"], args.batch, 10)
        for name, sampling in STACKS.items():
            print(
                json.dumps({"stack": name, **measure(generator, watch, sampling, args.batch, args.steps)}), flush=True
            )


if __name__ == "__main__":
    main()
