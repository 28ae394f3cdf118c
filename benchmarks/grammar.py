"""What a grammar costs: seconds per token of answers that follow a JSON schema, against the same without one.

    python -m benchmarks.grammar [-m MODEL] [--batch 1,8] [--tokens N] [--rounds N] [--threads N]

Rounds of both kinds take turns, and the ratio is the median of the ratios of neighbours. The schema never allows an end
before the last token, so both kinds draw equally many.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from exllama import Generator, Grammar, Job, Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1},
        "email": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(org|com)$"},
    },
    "required": ["name", "age", "tags", "email"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 1000}


def seconds_per_token(generator: Generator, batch: int, tokens: int, grammars: list[Grammar]) -> float:
    """Of decode alone: the time of the prompt and the first token is left out."""
    jobs = []
    for seed in range(batch):
        sampling = Sampling(temperature=0.8, seed=seed)
        prompt = f"A list of {seed + 2} people as JSON:\n"
        jobs.append(Job(prompt, tokens, sampling, grammars=grammars, min_new_tokens=0 if grammars else tokens))
        generator.enqueue(jobs[-1])
    while not all(job.text for job in jobs):
        generator.step()
    start, begun = time.perf_counter(), sum(sequence.num_tokens for sequence in generator._sequences.values())
    prompts = sum(sequence.prompt_tokens for sequence in generator._sequences.values())
    while generator.active:
        generator.step()
    seconds = time.perf_counter() - start
    drawn = sum(job.finished.new_tokens for job in jobs if job.finished) - (begun - prompts)
    assert all(job.finished and job.finished.reason == "length" for job in jobs)
    return seconds / drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    grammars = [Grammar.json_schema(SCHEMA)]
    with Generator.from_pretrained(arguments.model, cache_tokens=8192, threads=arguments.threads) as generator:
        for batch in map(int, arguments.batch.split(",")):
            pairs = []
            for _ in range(arguments.rounds + 1):
                free = seconds_per_token(generator, batch, arguments.tokens, [])
                pairs.append((free, seconds_per_token(generator, batch, arguments.tokens, grammars)))
            free, bound = (1000 * statistics.median(times) for times in zip(*pairs[1:], strict=True))
            ratio = statistics.median(b / a for a, b in pairs[1:])
            print(f"batch {batch}: {free:.2f} ms per token free, {bound:.2f} ms with a schema, ratio {ratio:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
