"""The dynamic generator: batches against llama.cpp, prefix cache, pauses, overhead, speculation.

    python benchmarks/generator.py [--threads 2] [--rounds 3] [--only batch,prefix,pauses,overhead,ngram] [--json FILE]

Engines and settings that are compared run in turn, so that only ratios of neighbouring samples count; printed are their
medians. The part `batch` needs the extra [peers]. All parts use the default model, `batch` its Q4_0 version.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type
from model_files import default_model, smollm2

from exllama import ops
from exllama.cli.benchmark_text import PROMPTS
from exllama.engine.batch import Batch
from exllama.generator import GREEDY, Generator, Job, Sampling, Text

PROMPT, DECODE = 64, 64  # tokens per sequence in `batch`
REST = 0.05  # seconds between two engines: OpenMP's threads spin for a while after their work
Row = dict[str, Any]


def tokens(count: int, seed: int) -> list[int]:
    """Ids spread over the vocabulary."""
    return [(index * 7919 + seed * 104729) % 48000 + 200 for index in range(count)]


def load(threads: int, path: Path | None = None, **wishes: Any) -> Generator:
    return Generator.from_pretrained(path or default_model(), threads=threads, **wishes)


class LlamaCpp:
    """llama.cpp's batched decode: one llama_batch with a token of every sequence, no sampling."""

    def __init__(self, path: Path, threads: int, sequences: int) -> None:
        import llama_cpp

        self.api, self.sequences = llama_cpp, sequences
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # must live as long as the library
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = sequences * 256
        settings.n_batch = settings.n_ubatch = 512
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def decode(self, rows: list[tuple[int, int, int]]) -> None:
        """rows: (token, position, sequence)."""
        self.batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            self.batch.token[index] = token
            self.batch.pos[index] = position
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = sequence
            self.batch.logits[index] = 1
        if self.api.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")

    def run(self) -> float:
        """Tokens per second of all sequences together."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        for sequence in range(self.sequences):
            self.decode([(token, at, sequence) for at, token in enumerate(tokens(PROMPT, sequence))])
        begin = time.perf_counter()
        for at in range(PROMPT, PROMPT + DECODE):
            self.decode([(tokens(1, at + sequence)[0], at, sequence) for sequence in range(self.sequences)])
        return self.sequences * DECODE / (time.perf_counter() - begin)


def new_job(seed: int) -> Job:
    return Job(tokens(PROMPT, seed), DECODE + 1, min_new_tokens=DECODE + 1)


def run_batch(generator: Generator, sequences: int, seed: int) -> float:
    """Tokens per second of all sequences together, with sampling, text and events."""
    jobs = [generator.enqueue(new_job(1000 * seed + i)) for i in range(sequences)]
    begun: set[Job] = set()
    while len(begun) < sequences:
        begun |= {event.job for event in generator.step() if isinstance(event, Text)}
    begin, drawn = time.perf_counter(), 0
    while generator.active:
        drawn += sum(len(event.token_ids) for event in generator.step() if isinstance(event, Text))
    assert all(job.finished for job in jobs)
    return drawn / (time.perf_counter() - begin)


def batch(threads: int, rounds: int) -> list[Row]:
    path, rows = smollm2(Type.Q4_0), []
    for sequences in (4, 8, 16):
        peer = LlamaCpp(path, threads, sequences)
        with load(threads, path, cache_tokens=sequences * 512, max_batch_size=sequences) as generator:
            samples = []
            for index in range(rounds + 1):
                ours = run_batch(generator, sequences, index)
                time.sleep(REST)
                samples.append((ours, peer.run()))
                time.sleep(REST)
        rows.append({"test": f"decode of {sequences} sequences, t/s", **ratio(samples[1:], "exllama", "llama.cpp")})
    return rows


def prefix(threads: int, rounds: int) -> list[Row]:
    """Time to the first token of a prompt of 2,000 tokens, then of another one with the same beginning."""
    samples = []
    with load(threads, cache_tokens=16384) as generator:
        for index in range(rounds + 1):
            shared = tokens(2000, index)
            first, second = (Job([*shared, 300 + i], 2) for i in range(2))
            for job in (first, second):
                for _ in generator.stream(job):
                    pass
            samples.append(tuple(1000 * (j.finished.times.queued + j.finished.times.prefill) for j in (second, first)))
    return [{"test": "2,000 shared tokens, ms to the first token", **ratio(samples[1:], "again", "first")}]


def pauses(threads: int, rounds: int) -> list[Row]:
    """8 streams run, a prompt of 8,000 tokens is being read, a prompt of 50 arrives."""
    samples = []
    with load(threads, cache_tokens=24 * 1024, max_batch_size=16) as generator:
        for index in range(rounds):
            story = PROMPTS["story"]
            streams = [generator.enqueue(Job(f"{i}. {story}", 600, min_new_tokens=600)) for i in range(8)]
            alone = statistics.median(seconds(generator.step)[0] for _ in range(20))
            long = generator.enqueue(Job(tokens(8000, 100 + index), 2))
            generator.step()
            short = generator.enqueue(Job(tokens(50, 200 + index), 2))
            samples.append((*watch(generator, streams, short), alone))
            for job in (*streams, long, short):
                generator.cancel(job)
            generator.step()
    names = ("first token of a short prompt, steps", "the same, ms", "longest pause of a stream, steps")
    names += ("longest step, ms", "a step of the streams alone, ms")
    scales = (1, 1000, 1, 1000, 1000)
    return [
        {"test": f"8 streams and an 8k prompt: {name}", "exllama": round(scale * statistics.median(values), 1)}
        for name, scale, values in zip(names, scales, zip(*samples, strict=True), strict=True)
    ]


def watch(generator: Generator, streams: list[Job], short: Job) -> tuple[float, float, float, float]:
    """(steps, seconds) until `short` answers; the longest pause of a stream in steps; seconds of the longest step."""
    last, times, pause, answered = dict.fromkeys(streams, 0), [], 0, 0
    while not answered or len(times) < 12:
        second, events = seconds(generator.step)
        times.append(second)
        heard = {event.job for event in events if isinstance(event, Text)}
        for job in heard & last.keys():
            pause, last[job] = max(pause, len(times) - last[job]), len(times)
        if not answered and short in heard:
            answered = len(times)
    return answered, sum(times[:answered]), pause, max(times)


def overhead(threads: int, rounds: int) -> list[Row]:
    """The part of a decode step of 16 sequences that is not the model: scheduling, sampling, text, events."""
    rows = []
    for name, sampling in (("greedy", GREEDY), ("temperature 0.8, top-p 0.95", Sampling(0.8, top_p=0.95, seed=1))):
        shares = []
        with load(threads, cache_tokens=16 * 512) as generator:
            inside = [0.0]
            forward = generator._runner.forward

            def timed(batch: Batch, forward: Callable[..., torch.Tensor] = forward, inside: Any = inside) -> Any:
                begin = time.perf_counter()
                result = forward(batch)
                inside[0] += time.perf_counter() - begin
                return result

            generator._runner.forward = timed  # type: ignore[method-assign]
            for index in range(rounds):
                jobs = [Job(tokens(PROMPT, 100 * index + i), 200, sampling) for i in range(16)]
                for job in jobs:
                    generator.enqueue(job)
                for _ in range(20):
                    generator.step()
                inside[0] = 0.0
                whole = sum(seconds(generator.step)[0] for _ in range(150))
                shares.append(100 * (whole - inside[0]) / whole)
                for job in jobs:
                    generator.cancel(job)
                generator.step()
        rows.append({"test": f"overhead of a step of 16, {name}, %", "exllama": round(statistics.median(shares), 2)})
    return rows


def ngram(threads: int, rounds: int) -> list[Row]:
    """The same answers with and without looking back."""
    cases = {
        "a program is repeated": (PROMPTS["copy"], GREEDY),
        "a story, greedy": (PROMPTS["story"], GREEDY),
        "a story, temperature 1": (PROMPTS["story"], Sampling(1.0, seed=5)),
        "random tokens": (None, Sampling(1.0, seed=6)),
    }
    rows = []
    with load(threads, cache_tokens=4096, draft="ngram") as guessing, load(threads, cache_tokens=4096) as plain:
        for name, (prompt, sampling) in cases.items():
            samples, accepted = [], 0
            for index in range(rounds + 2):
                speeds, texts = [], []
                for generator in (guessing, plain):
                    job = Job(prompt or tokens(600, index), 300, sampling, seed=index, min_new_tokens=300)
                    for _ in generator.stream(job):
                        pass
                    speeds.append(299 / job.finished.times.decode)
                    texts.append(job.text)
                    accepted += job.finished.accepted_drafts
                assert texts[0] == texts[1]
                samples.append(tuple(speeds))
            row = ratio(samples[2:], "ngram", "plain")
            rows.append({"test": f"{name}, t/s", **row, "accepted of 299": round(accepted / (rounds + 2))})
    return rows


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def ratio(samples: list[tuple[float, ...]], ours: str, theirs: str) -> Row:
    return {
        ours: round(statistics.median(a for a, _ in samples), 1),
        theirs: round(statistics.median(b for _, b in samples), 1),
        "ratio": round(statistics.median(a / b for a, b in samples), 3),
    }


PARTS = {"batch": batch, "prefix": prefix, "pauses": pauses, "overhead": overhead, "ngram": ngram}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--json", type=Path, help="append one JSON object a line")
    arguments = parser.parse_args()
    print(f"level {ops.cpu_level()}, {arguments.threads} threads")
    for name in arguments.only.split(","):
        for row in PARTS[name](arguments.threads, arguments.rounds):
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps({"threads": arguments.threads, **row}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
