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
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(lambda level, text, data: None), None)
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


def run_batch(generator: Generator, sequences: int, seed: int) -> float:
    """Tokens per second of all sequences together, with sampling, text and events."""
    jobs = [generator.enqueue(Job(tokens(PROMPT, 1000 * seed + i), DECODE + 1)) for i in range(sequences)]
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
    short_steps, short_ms, pause_ms, pause_steps, decode_ms = [], [], [], [], []
    with load(threads, cache_tokens=24 * 1024, max_batch_size=16) as generator:
        for index in range(rounds):
            streams = [generator.enqueue(Job(tokens(20, 10 * index + i), 600)) for i in range(8)]
            alone = [seconds(generator.step)[0] for _ in range(20)]
            generator.enqueue(Job(tokens(8000, 100 + index), 2))
            generator.step()
            short = generator.enqueue(Job(tokens(50, 200 + index), 2))
            steps, waited, done = 0, 0.0, False
            last = dict.fromkeys(streams, 0)
            at, took = 0, []
            while not done or at < 12:
                second, events = seconds(generator.step)
                at, took = at + 1, [*took, second]
                waited += 0.0 if done else second
                heard = {event.job for event in events if isinstance(event, Text)}
                pause_steps += [at - last[job] for job in heard & set(streams)]
                last.update(dict.fromkeys(heard & set(streams), at))
                if not done:
                    steps, done = at, short in heard
            short_steps.append(steps)
            short_ms.append(1000 * waited)
            pause_ms.append(1000 * max(took))
            decode_ms.append(1000 * statistics.median(alone))
            for job in list(generator._sequences):
                generator.cancel(job)
            generator.step()
    return [
        {"test": "short prompt beside 8 streams and an 8k prompt, steps to answer", "exllama": max(short_steps)},
        {"test": "the same in ms", "exllama": round(statistics.median(short_ms), 1)},
        {"test": "longest pause of a stream meanwhile, steps", "exllama": max(pause_steps)},
        {"test": "the same in ms", "exllama": round(statistics.median(pause_ms), 1)},
        {"test": "a step of the 8 streams alone, ms", "exllama": round(statistics.median(decode_ms), 2)},
    ]


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
                for i in range(16):
                    generator.enqueue(Job(tokens(PROMPT, 100 * index + i), 200, sampling))
                for _ in range(20):
                    generator.step()
                inside[0] = 0.0
                whole = sum(seconds(generator.step)[0] for _ in range(150))
                shares.append(100 * (whole - inside[0]) / whole)
                for job in list(generator._sequences):
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
