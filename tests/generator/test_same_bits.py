"""On real kernels and toy checkpoints: what a job answers is the same bit for bit, whatever runs beside it.

Not only the tokens but all logits that they were drawn from are compared: alone, in a batch of 16, after a prefix hit,
in chunks, preempted and resumed, with drafts of every kind, with one thread and with two, for several kinds of weights
and caches.
The reference device leaves sums to torch, whose order depends on the number of rows: there the bound is
1e-4 relative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from exllama.cache.disk import DiskTier
from exllama.cache.pages import PagePool
from exllama.cache.spill import MemoryTier, Spill, Tier
from exllama.cache.storage import KVCache
from exllama.engine.fingerprint import pages_header
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.generator import Finished, Generator, Job, Sampling
from exllama.generator.drafting import ngram
from exllama.generator.drafting.choose import make_drafter
from exllama.generator.drafting.drafter import Drafter
from exllama.generator.drafting.model import OtherModelDrafter
from exllama.generator.drafting.ngram import NgramDrafter
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sequence import Sequence
from tests.generator.drafters import Foresight, always, wrong_positions
from tests.models.test_gguf_models import write
from tests.models.toys import VOCAB, save, toy_config, toy_model

__all__ = ["always"]
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
        self.fingerprint = "toy"

    def close(self) -> None:
        """The model is shared by tests."""


class Bench:
    """A generator whose logits are kept. Pages are NaN while they hold nothing: whoever reads one is noticed."""

    def __init__(
        self,
        model: Model,
        kind: str = "fp16",
        rows: int = 2048,
        batch: int = 16,
        pages: int = 48,
        drafter: Callable[[Runner], Drafter] | None = None,
        tier: Callable[[KVCache], Tier] | None = None,
    ) -> None:
        self.cache = KVCache(model.cache_layers, pages, kind)
        self.spill = Spill(self.cache, tier(self.cache) if tier else None, poison=True)
        runner = Runner(model, self.cache, rows, batch)
        drafts = drafter(runner) if drafter else None
        self.generator = Generator(Named(model), runner, drafter=drafts, spill=self.spill)  # type: ignore[arg-type]
        self.logits: dict[Job, list[torch.Tensor]] = {}
        step = self.generator._scheduler._step
        self._draw, step.draw = step.draw, self.record  # type: ignore[method-assign]

    def record(self, sequences: Any, logits: torch.Tensor) -> list[int]:
        """Keeps all logits that a token is drawn from."""
        for sequence, row in zip(sequences, logits, strict=True):
            self.logits.setdefault(sequence.job, []).append(row.clone())
        return self._draw(sequences, logits)

    def run(self, chosen: list[int], new: int = NEW, **more: Any) -> Answers:
        jobs = {self.generator.enqueue(Job(PROMPTS[i], new, SAMPLING, **more)): i for i in chosen}
        while self.generator.active:
            self.generator.step()
        self.generator.check_integrity()
        assert all(job.finished and job.finished.new_tokens == new for job in jobs)
        return {i: ([int(word) for word in job.text.split()], self.logits[job]) for job, i in jobs.items()}


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
        "Q4_1": write(toy_model(toy_config("llama", num_hidden_layers=3)), folder / "q4_1.gguf", types),
        "F32": save(toy_model(toy_config("qwen3")), folder / "f32"),
        "BF16": save(toy_model(toy_config("qwen2", num_hidden_layers=3)), folder / "bf16", torch.bfloat16),
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


@pytest.mark.usefixtures("always")
def test_guided(setup: Setup) -> None:
    """With a negative prompt: in a batch, in chunks, with cached prefixes, on few pages and with drafts."""
    device, model, kind, alone = setup
    chosen, wishes = [0, 2, 7, 11], {"negative_prompt": PROMPTS[3], "cfg_scale": 1.7}
    expected: Answers = {}
    for i in chosen:
        expected |= Bench(model, kind, batch=2, pages=6).run([i], **wishes)
    assert any(expected[i][0] != alone[i][0] for i in chosen), "guidance changes nothing"
    for shape in ({}, {"rows": 24}, {"pages": 5}, {"drafter": lambda runner: Known(expected)}):
        bench = Bench(model, kind, **shape)  # type: ignore[arg-type]
        for _ in range(2):
            assert_same(device, bench.run(chosen, **wishes), expected)


def test_spilled_and_reloaded(setup: Setup, tmp_path: Path) -> None:
    """On five pages, everything that was computed has to leave and to come back; then in another process."""
    device, model, kind, alone = setup
    chosen = [0, 3, 4, 15]

    def memory(cache: KVCache) -> Tier:
        return MemoryTier(64 * cache.page_nbytes)

    def folder(cache: KVCache) -> Tier:
        return DiskTier(tmp_path / "pages", 1 << 30, pages_header(Named(model), cache), cache.page_nbytes)

    for tier in (memory, folder):
        bench = Bench(model, kind, batch=2, pages=5, tier=tier)
        for _ in range(2):
            assert_same(device, bench.run(chosen), alone)
        assert bench.spill.loaded >= 3
        bench.generator.close()
    bench = Bench(model, kind, batch=2, pages=5, tier=folder)
    assert_same(device, bench.run(chosen), alone)
    assert bench.spill.loaded == 4, "one page each"
    bench.generator.close()


def test_saved_and_loaded_pages(setup: Setup, tmp_path: Path) -> None:
    device, model, kind, alone = setup
    first, second = Bench(model, kind), Bench(model, kind)
    first.run([4])
    assert first.generator.save_pages(tmp_path / "pages", PROMPTS[4]) == 512
    assert second.generator.load_pages(tmp_path / "pages") == 512
    assert_same(device, second.run([4]), alone)
    job = Job(PROMPTS[4], 1)
    for _ in second.generator.stream(job):
        pass
    assert job.finished is not None
    assert job.finished.cached_tokens == 511


def test_a_cleared_page_is_all_nan(setup: Setup) -> None:
    """Else the tests above would prove little."""
    _, model, kind, _ = setup
    bench = Bench(model, kind, pages=2)
    job = bench.generator.enqueue(Job(PROMPTS[2], 30))
    bench.generator.step()
    bench.cache.poison_page(bench.generator._scheduler._running[0].table.pages[0])
    while bench.generator.active:
        bench.generator.step()
    assert job.finished is not None
    assert job.finished.reason == "error"


class Known(Foresight):
    """Guesses the answers, and something else at a third of all positions."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(30, longest=5)
        self.texts = {tuple(PROMPTS[i]): [*PROMPTS[i], *tokens] for i, (tokens, _) in answers.items()}

    def guess(self, sequence: Sequence, sampler: JobSampler, position: int) -> int:
        right = self.texts[tuple(sequence.job.prompt)][position]
        return (right + 1) % VOCAB if wrong_positions(position, position + 1, self.wrong)[0] else right


def drafter_of(kind: str, model: Model, alone: Answers, monkeypatch: pytest.MonkeyPatch) -> Callable[[Runner], Drafter]:
    if kind == "known":
        return lambda runner: Known(alone)
    if kind == "skip":
        return lambda runner: make_drafter("skip:1", model, runner)  # type: ignore[return-value]
    if kind == "ngram":
        monkeypatch.setattr(ngram, "LENGTH", 1)  # the texts are random: three tokens in a row never come back
        return lambda runner: NgramDrafter()

    def itself(runner: Runner) -> Drafter:
        small = Runner(model, KVCache(model.cache_layers, 10), 40, runner.max_sequences)
        return OtherModelDrafter(small, PagePool(10), 1024, VOCAB, lambda: None)

    return itself


LEAST = {"known": (150, 50), "skip": (0, 50), "ngram": (0, 50), "model": (20, 0)}  # drafts accepted, and rejected


@pytest.mark.usefixtures("always")
def test_speculative(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch whose prompts come in chunks and whose pages do not suffice, then with all prefixes in the cache."""
    device, model, kind, alone = setup
    for draft in ["known"] if device == "reference" else LEAST:
        if draft == "skip" and model.config.num_layers < 3:
            continue  # there is nothing between the first and the last
        bench = Bench(model, kind, rows=64, batch=9, pages=14, drafter=drafter_of(draft, model, alone, monkeypatch))
        for chosen in (list(range(16)), [0, 4, 15]):
            assert_same(device, bench.run(chosen), alone)
        ends: list[Finished] = [job.finished for job in bench.logits if job.finished]
        assert sum(end.accepted_drafts for end in ends) >= LEAST[draft][0]
        assert sum(end.rejected_drafts for end in ends) >= LEAST[draft][1]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", KINDS)
def test_two_threads(files: dict[str, Path], kind: str) -> None:
    answers: list[Answers] = []
    for threads in (1, 2):
        model = Model.from_pretrained(files["Q4_1"], threads=threads)
        answers.append(Bench(model, kind, rows=100).run(list(range(16))))
    assert_same("cpu", answers[1], answers[0])
    drafted = Bench(model, kind, rows=100, drafter=lambda runner: Known(answers[0])).run(list(range(16)))
    assert_same("cpu", drafted, answers[0])
