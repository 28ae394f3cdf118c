"""exllama against llama.cpp on the same file and threads, in turn, so that only ratios of neighbours count.

    python benchmarks/cpu_peers.py [--threads 2] [--rounds 5] [--decode 128] [--only q4_1,q4_0,f16,1b] [--json FILE]

Needs the extra [peers] (llama-cpp-python, built natively). Every round measures prefill of 512 tokens, decode of 128
(`--decode`) and, in some cases, decode at a depth of 4096, first one engine, then the other; the printed ratio is the
median over rounds. F16 prefill is also compared with transformers in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from model_files import default_model, one_b_random, smollm2

from exllama import ops
from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.loader.sources import open_checkpoint

PREFILL, DEPTH, CHUNK = 512, 4096, 512
REST = 0.05  # seconds between two engines: OpenMP's threads spin for a while after their work


def token(index: int, vocabulary: int) -> int:
    return index * 7919 % (vocabulary - 200) + 100


class Exllama:
    """The forward pass alone: tokens in, logits of the last one out."""

    def __init__(self, path: Path, threads: int, cache: str, longest: int) -> None:
        self.model = Model.from_pretrained(path, threads=threads)
        pages = -(-longest // ops.PAGE_SIZE)
        self.runner = Runner(self.model, KVCache(self.model.cache_layers, pages, cache), CHUNK, 1)
        self.table = np.arange(pages, dtype=np.int32)[None]

    def evaluate(self, tokens: list[int], position: int) -> None:
        for start in range(0, len(tokens), CHUNK):
            ids = np.array(tokens[start : start + CHUNK], np.int32)
            positions = np.arange(position + start, position + start + len(ids), dtype=np.int32)
            self.runner.forward(
                Batch(ids, positions, np.zeros_like(ids), self.table, np.array([len(ids) - 1], np.int32))
            )


class LlamaCpp:
    def __init__(self, path: Path, threads: int, cache: str, longest: int) -> None:
        import llama_cpp

        kinds = {"fp16": llama_cpp.GGML_TYPE_F16, "q4": llama_cpp.GGML_TYPE_Q4_0}
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=longest,
            n_batch=CHUNK,
            n_ubatch=CHUNK,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=kinds[cache],
            type_v=kinds[cache],
            flash_attn=cache != "fp16",
            verbose=False,
        )

    def evaluate(self, tokens: list[int], position: int) -> None:
        self.model.n_tokens = position
        self.model.eval(tokens)


class TransformersBf16:
    """The same shape with random weights in torch, bfloat16, prefill only."""

    def __init__(self, path: Path, threads: int) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.set_num_threads(threads)
        with open_checkpoint(path) as checkpoint:
            config = AutoConfig.for_model(**checkpoint.config)
        self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    def evaluate(self, tokens: list[int], position: int) -> None:
        with torch.inference_mode():
            self.model(input_ids=torch.tensor([tokens]), use_cache=True, logits_to_keep=1)


@dataclass(frozen=True)
class Case:
    name: str
    file: Callable[[], Path]
    cache: str = "fp16"
    depth: bool = False
    torch_too: bool = False
    prefill: bool = True


CASES = {
    "q4_1": Case("SmolLM2 Q4_1", default_model, depth=True),
    "q4_0": Case("SmolLM2 Q4_0", lambda: smollm2(Type.Q4_0), depth=True),
    "q4_0-q4": Case(
        "SmolLM2 Q4_0, q4 cache (peer: fp16)", lambda: smollm2(Type.Q4_0), cache="q4", depth=True, prefill=False
    ),
    "f16": Case("SmolLM2 F16", lambda: smollm2(Type.F16), depth=True, torch_too=True),
    "1b": Case("Llama 1B shape Q4_0", one_b_random),
}


def speed(engine: Any, tokens: list[int], position: int, one_by_one: bool) -> float:
    """Tokens per second."""
    time.sleep(REST)
    start = time.perf_counter()
    if one_by_one:
        for i, item in enumerate(tokens):
            engine.evaluate([item], position + i)
    else:
        engine.evaluate(tokens, position)
    return len(tokens) / (time.perf_counter() - start)


def compare(case: Case, threads: int, rounds: int, decode: int) -> dict[str, Any]:
    """Medians of tokens per second and of the ratios of neighbouring samples. decode: tokens, at most CHUNK."""
    path = case.file()
    longest = DEPTH + 2 * CHUNK if case.depth else 2 * CHUNK
    ours, theirs = Exllama(path, threads, case.cache, longest), LlamaCpp(path, threads, "fp16", longest)
    tokens = [token(i, ours.model.vocab_size) for i in range(longest)]
    wanted = [(f"pp{PREFILL}", tokens[:PREFILL], 0, False)] if case.prefill else []
    wanted.append((f"tg{decode}", tokens[:decode], 1, True))
    if case.depth:
        for engine in (ours, theirs):
            engine.evaluate(tokens[:DEPTH], 0)
        wanted.insert(0, (f"tg{decode}@d{DEPTH}", tokens[:decode], DEPTH, True))
    result: dict[str, Any] = {"case": case.name, "threads": threads, "tests": {}}
    for name, ids, position, one_by_one in wanted:
        samples = [
            (speed(ours, ids, position, one_by_one), speed(theirs, ids, position, one_by_one))
            for _ in range(rounds + 1)
        ][1:]
        result["tests"][name] = summary(samples)
    if case.torch_too:
        peer = TransformersBf16(path, threads)
        samples = [
            (speed(ours, tokens[:PREFILL], 0, False), speed(peer, tokens[:PREFILL], 0, False))
            for _ in range(rounds + 1)
        ][1:]
        result["tests"][f"pp{PREFILL} against torch bf16"] = summary(samples)
    ours.model.close()
    return result


def summary(samples: list[tuple[float, float]]) -> dict[str, float]:
    ours, theirs = zip(*samples, strict=True)
    return {
        "exllama": round(statistics.median(ours), 1),
        "peer": round(statistics.median(theirs), 1),
        "ratio": round(statistics.median(a / b for a, b in samples), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=128, choices=range(1, CHUNK), metavar="N", help="tokens a sample")
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    parser.add_argument("--json", type=Path, help="append one JSON object a line")
    arguments = parser.parse_args()
    limits = ops.machine_limits(arguments.threads)
    print(
        f"level {ops.cpu_level()}, {arguments.threads} threads, " + ", ".join(f"{k} {v:.0f}" for k, v in limits.items())
    )
    for name in arguments.only.split(","):
        result = compare(CASES[name], arguments.threads, arguments.rounds, arguments.decode) | {
            "level": ops.cpu_level(),
            **limits,
        }
        for test, row in result["tests"].items():
            print(
                f"{result['case']:38} {test:24} {row['exllama']:8} t/s  peer {row['peer']:8} t/s  ratio {row['ratio']}",
                flush=True,
            )
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
