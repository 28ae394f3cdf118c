"""On real kernels and toy checkpoints: what a job answers is the same bit for bit, whatever runs beside it.

Not only the tokens but all logits that they were drawn from are compared: alone, in a batch of 16, after a prefix hit,
in chunks, preempted and resumed, with one thread and with two, for several kinds of weights and caches.
The reference device leaves sums to torch, whose order depends on the number of rows: there the bound is 1e-4 relative.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.generator import Generator, Job, Sampling
from tests.models.test_gguf_models import write
from tests.models.toys import VOCAB, save, toy_config, toy_model

NEW = 24
KINDS = ["fp16", "q8", "q6", "q4"]
SAMPLING = Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.1, repetition_range=50, seed=123)
LENGTHS = [300, 1, 37, 270, 512, 8, 256, 255, 90, 17, 2, 64, 130, 5, 44, 257]
PROMPTS = [np.random.default_rng(i).integers(3, VOCAB, n).tolist() for i, n in enumerate(LENGTHS)]

Answers = dict[int, tuple[list[int], list[torch.Tensor]]]  # prompt -> tokens, logits that each was drawn from


class Numbers:
    """A tokenizer for vocabularies without text: a token is its number."""

    eos_ids: tuple[int, ...] = ()
    control_ids: frozenset[int] = frozenset()

    def id_to_piece(self, token_id: int) -> bytes:
        return b"%d " % token_id


class Named:
    """A toy model with that tokenizer."""

    def __init__(self, model: Model) -> None:
        self.context_length, self.vocab_size, self.tokenizer = model.context_length, model.vocab_size, Numbers()

    def close(self) -> None:
        """The model is shared by tests."""


class Recorder(Runner):
    """Keeps all logits, by row."""

    last: torch.Tensor

    def forward(self, batch: Batch) -> torch.Tensor:
        self.last = super().forward(batch).clone()
        return self.last


class Bench:
    """A generator whose logits are kept."""

    def __init__(self, model: Model, kind: str = "fp16", rows: int = 2048, batch: int = 16, pages: int = 48) -> None:
        self.runner = Recorder(model, KVCache(model.cache_layers, pages, kind), rows, batch)
        self.generator = Generator(Named(model), self.runner)  # type: ignore[arg-type]

    def run(self, chosen: list[int], new: int = NEW) -> Answers:
        jobs = {self.generator.enqueue(Job(PROMPTS[i], new, SAMPLING)): i for i in chosen}
        logits: dict[Job, list[torch.Tensor]] = {job: [] for job in jobs}
        while self.generator.active:
            self.generator.step()
            drawn = [part.sequence.job for part in self.generator._scheduler._step.parts if part.draws]
            for job, row in zip(drawn, self.runner.last, strict=True):
                logits[job].append(row)
        self.generator.check_integrity()
        assert all(job.finished and job.finished.new_tokens == new for job in jobs)
        return {i: ([int(word) for word in job.text.split()], logits[job]) for job, i in jobs.items()}


def assert_same(device: str, found: Answers, expected: Answers) -> None:
    for i, (tokens, logits) in found.items():
        assert tokens == expected[i][0]
        for a, b in zip(logits, expected[i][1], strict=True):
            if device == "cpu":
                assert torch.equal(a, b)
            else:
                assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toys")
    types = {"token_embd.weight": gguf.GGMLQuantizationType.Q8_0, "": gguf.GGMLQuantizationType.Q4_1}
    return {
        "Q4_1": write(toy_model(toy_config("llama")), folder / "q4_1.gguf", types),
        "F32": save(toy_model(toy_config("qwen3")), folder / "f32"),
        "BF16": save(toy_model(toy_config("qwen2")), folder / "bf16", torch.bfloat16),
    }


SETUPS = [("cpu", "Q4_1", kind) for kind in KINDS] + [("cpu", "F32", "fp16"), ("cpu", "BF16", "q8")]
SETUPS += [("reference", "F32", "fp16")]


@pytest.fixture(scope="module", params=SETUPS, ids="-".join)
def setup(request: pytest.FixtureRequest, files: dict[str, Path]) -> tuple[str, Model, str, Answers]:
    """(device, model, cache kind, every answer alone in a new generator with one thread)."""
    device, weights, kind = request.param
    model = Model.from_pretrained(files[weights], device=device, threads=1)
    alone: Answers = {}
    for i in range(len(PROMPTS)):
        alone |= Bench(model, kind, batch=1, pages=4).run([i])
    return device, model, kind, alone


Setup = tuple[str, Model, str, Answers]


def test_a_toy_answers_with_many_tokens(setup: Setup) -> None:
    """Else equality would say little."""
    tokens = [token for answer, _ in setup[3].values() for token in answer]
    assert len(set(tokens)) > 60


@pytest.mark.parametrize("rows", [16, 64, 2048])
def test_batch_of_16(setup: Setup, rows: int) -> None:
    device, model, kind, alone = setup
    assert_same(device, Bench(model, kind, rows).run(list(range(16))), alone)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_chunks(setup: Setup, rows: int) -> None:
    device, model, kind, alone = setup
    bench = Bench(model, kind, rows, batch=1)
    assert_same(device, bench.run([0, 4, 7]), alone)


def test_prefix_hit(setup: Setup) -> None:
    device, model, kind, alone = setup
    bench = Bench(model, kind)
    assert_same(device, bench.run([0, 4, 15]), alone)
    again = bench.run([0, 4, 15, 2])
    assert_same(device, again, alone)
    job = Job(PROMPTS[4], 1)
    for _ in bench.generator.stream(job):
        pass
    assert job.finished is not None
    assert job.finished.cached_tokens == 511


def test_preempted_and_resumed(setup: Setup) -> None:
    """Seven prompts that need fourteen pages on five."""
    device, model, kind, _ = setup
    chosen, new = [0, 3, 6, 7, 8, 12, 15], 120
    expected = Bench(model, kind).run(chosen, new)
    bench = Bench(model, kind, pages=5)
    preempted: list[Any] = []
    preempt = bench.generator._scheduler._preempt
    bench.generator._scheduler._preempt = lambda s: (preempted.append(s), preempt(s))[1]  # type: ignore[method-assign]
    assert_same(device, bench.run(chosen, new), expected)
    assert preempted


@pytest.mark.parametrize("kind", KINDS)
def test_two_threads(files: dict[str, Path], kind: str) -> None:
    answers = []
    for threads in (1, 2):
        model = Model.from_pretrained(files["Q4_1"], threads=threads)
        answers.append(Bench(model, kind, rows=100).run(list(range(16))))
    assert_same("cpu", answers[1], answers[0])
