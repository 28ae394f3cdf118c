"""Speed of answers with and without guessed tokens: the same texts, drawn greedily, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from exllama import ops
from exllama.generator import Generator, Job

_PROGRAM = """def area(width, height):
    return width * height


def volume(width, height, depth):
    return width * height * depth
"""
PROMPTS = {
    "copy": f"{_PROGRAM * 3}\n# The same again:\n{_PROGRAM[:20]}",
    "story": "Once upon a time, in a small village by the sea, there lived an old clockmaker who",
}


def measure_drafts(
    source: str, draft: str, tokens: int, runs: int, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A JSON object per prompt and way: `copy128`, then `copy128+ngram` with drafts.

    copy: a program to be repeated, which looking back guesses well; story: free text. options: of from_pretrained.
    """
    device = "cpu" if options["device"] == "auto" else options["device"]
    where = {"threads": options["threads"] or ops.default_threads(), "device": device}
    with ExitStack() as stack:
        ways = [
            (name, stack.enter_context(Generator.from_pretrained(source, draft=each, **options)))
            for name, each in (("", None), (f"+{draft}", draft))
        ]
        for prompt, text in PROMPTS.items():
            samples: dict[str, list[Job]] = {name: [] for name, _ in ways}
            for _ in range(runs + 1):
                for name, generator in ways:
                    samples[name].append(_answer(generator, text, tokens))
            for name, _ in ways:
                yield {"test": f"{prompt}{tokens}{name}", **_numbers(samples[name][1:]), **where}


def _answer(generator: Generator, text: str, tokens: int) -> Job:
    job = Job(text, tokens + 1, min_new_tokens=tokens + 1)  # the first token is the prompt's
    for _ in generator.stream(job):
        pass
    return job


def _numbers(jobs: list[Job]) -> dict[str, Any]:
    ends = [job.finished for job in jobs if job.finished]
    speeds = [(end.new_tokens - 1) / end.times.decode for end in ends]
    return {
        "tokens_per_second": round(statistics.median(speeds), 3),
        "min": round(min(speeds), 3),
        "max": round(max(speeds), 3),
        "runs": len(speeds),
        "accepted_drafts": round(statistics.median(end.accepted_drafts for end in ends)),
        "rejected_drafts": round(statistics.median(end.rejected_drafts for end in ends)),
    }
