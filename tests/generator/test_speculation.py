"""Drafts change speed and nothing else: every answer is compared with what it must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exllama.cache.pages import PagePool
from exllama.generator import GREEDY, Job, Sampling, Text
from exllama.generator.drafting import speculation
from exllama.generator.drafting.model import OtherModelDrafter
from exllama.generator.drafting.ngram import LENGTH, NgramDrafter, SuffixIndex
from exllama.generator.drafting.pace import Rate, StepCosts, choose_counts
from exllama.generator.sequence import Sequence
from tests.generator.drafters import Foresight, always, wrong_positions
from tests.generator.fake_model import FakeRunner, logits_from, make, mix
from tests.generator.oracle import answer_of
from tests.generator.test_scheduler import Life, assert_right, finish, prompt_of

__all__ = ["always"]
SAMPLED = Sampling(temperature=0.9, top_k=30, top_p=0.95, repetition_penalty=1.1, repetition_range=20, seed=11)
STEERED = Sampling(temperature=0.9, mirostat_mode=2, mirostat_tau=3.0, dry_multiplier=0.8, typical_p=0.95, seed=12)
WRONG = [0, 30, 100]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, STEERED], ids=["greedy", "sampled", "steered"])
def test_answers_are_the_same_and_counts_are_exact(sampling: Sampling, wrong: int) -> None:
    for new in (1, 2, 9, 10, 256):
        generator, runner = make(drafter=Foresight(wrong))
        job = Job(prompt_of(40, 0), new, sampling)
        events = finish(generator, [job])
        assert_right(job)
        tokens = [token for event in events if isinstance(event, Text) for token in event.token_ids]
        assert len(tokens) == job.finished.new_tokens == new
        accepted, rejected = job.finished.accepted_drafts, job.finished.rejected_drafts
        assert accepted >= new // 3 or wrong == 100
        assert sum(runner.rows) == 40 + (new - 1) + rejected, "a row was computed that is no token and no draft"
        assert len(runner.rows) == new - accepted
        if wrong == 0:
            assert rejected == 0
            assert len(runner.rows) <= 2 + new / 9 + 2  # drafts take no page, so one step in 256 has fewer
        if wrong == 100:
            assert accepted <= new / 50  # by chance


@pytest.mark.usefixtures("always")
def test_accepted_drafts_are_those_that_were_right() -> None:
    generator, _ = make(drafter=Foresight(40, longest=1))
    job = Job(prompt_of(40, 0), 101)
    finish(generator, [job])
    position, accepted, rejected = 41, 0, 0  # the first token comes from the prompt
    while position < 140:
        right = not wrong_positions(position, position + 1, 40)[0]
        accepted, rejected = accepted + right, rejected + (not right)
        position += 1 + right
    assert (job.finished.accepted_drafts, job.finished.rejected_drafts) == (accepted, rejected)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("wrong", WRONG)
def test_batches_chunks_and_preemption(wrong: int) -> None:
    generator, runner = make(pages=6, rows=64, drafter=Foresight(wrong))
    jobs = [Job(prompt_of(10 + 40 * i, i), 270, SAMPLED if i % 2 else GREEDY) for i in range(7)]
    finish(generator, jobs)
    assert_right(*jobs)
    assert max(runner.rows) <= 64
    assert sum(runner.rows) > sum(len(job.prompt) + 269 for job in jobs), "nothing was preempted"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("wrong", [0, 30])
def test_stops_inside_of_drafts(wrong: int) -> None:
    plain, _ = make(ends=True)
    for seed in range(3):
        for wishes in ({}, {"min_new_tokens": 30}, {"stop": ["a", "zz"]}, {"stop": [70], "min_new_tokens": 3}):
            prompt = prompt_of(30, seed)
            expected = Job(prompt, 300, **wishes)
            finish(plain, [expected])
            generator, _ = make(ends=True, drafter=Foresight(wrong, ends=True))
            job = Job(prompt, 300, **wishes)
            finish(generator, [job])
            assert job.text == expected.text
            for name in ("reason", "stop", "new_tokens", "prompt_tokens"):
                assert getattr(job.finished, name) == getattr(expected.finished, name)
            assert generator._pool.num_available == 64


@pytest.mark.usefixtures("always")
def test_no_numbers_after_drafts_end_the_job_where_they_would_without() -> None:
    prompt = prompt_of(40, 0)
    answer = answer_of(prompt, 40)
    poison = next(token for token in answer[5:] if token not in [*prompt, *answer[:5]])
    ends = []
    for drafter in (None, Foresight(0)):
        generator, runner = make(drafter=drafter)
        runner.poison = poison
        jobs = [Job(prompt, 40), Job([poison ^ 1] * 3, 2)]
        finish(generator, jobs)
        ends.append((jobs[0].text, jobs[0].finished.reason, jobs[0].finished.new_tokens, str(jobs[0].finished.error)))
        assert jobs[1].finished.reason == "length"
    assert ends[0] == ends[1]
    assert ends[0][1] == "error"


@pytest.mark.usefixtures("always")
def test_drafts_take_no_pages_and_do_not_reach_the_next_request() -> None:
    """S18: rejected guesses leave no page that others could find."""
    generator, _ = make(pages=3, batch=1, drafter=Foresight(50))
    job = Job(prompt_of(100, 0), None)
    finish(generator, [job])
    assert (job.finished.reason, job.finished.new_tokens) == ("context", 668)
    assert_right(job)
    again = Job([*job.prompt, *job.text.encode()][:500], 12)
    finish(generator, [again])
    assert again.finished.cached_tokens == 499
    assert_right(again)


@pytest.mark.usefixtures("always")
def test_a_failing_runner_leaves_drafts_that_do_no_harm() -> None:
    generator, runner = make(drafter=Foresight(20))
    job = generator.enqueue(Job(prompt_of(9, 0), 80))
    for i in range(60):
        runner.fail = i % 3 == 1 and generator.active
        if runner.fail:
            with pytest.raises(MemoryError):
                generator.step()
        else:
            generator.step()
        generator.check_integrity()
    assert_right(job)


class DraftedLife(Life):
    """The same with drafts of which a third is wrong."""

    def make(self) -> tuple[Any, FakeRunner]:
        return make(pages=5, rows=96, batch=3, drafter=Foresight(30, longest=5))


DraftedLife.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


@pytest.mark.usefixtures("always")
class TestDraftedLife(DraftedLife.TestCase):  # type: ignore[name-defined, misc]
    """Run by hypothesis."""


# --- Looking back ---


@given(st.lists(st.integers(0, 2), max_size=60), st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_the_index_finds_an_earlier_place_that_agrees(tokens: list[int], growth: list[int]) -> None:
    index, n = SuffixIndex(), 0
    array = np.array(tokens, np.int32)
    for more in growth:
        n = min(n + more, len(tokens))
        place, agreement = index.find(array[:n])
        assert (place, agreement) == index.find(array[:n])
        last = tokens[max(0, n - LENGTH) : n]
        earlier = [i for i in range(LENGTH, n) if len(last) == LENGTH and tokens[i - LENGTH : i] == last]
        assert (place > 0) == bool(earlier)
        if place:
            assert place in earlier[-4:]
            assert agreement >= LENGTH
            assert tokens[place - agreement : place] == tokens[n - agreement : n]
            longer = agreement + 1
            assert place == agreement or agreement == 32 or tokens[place - longer] != tokens[n - longer]


def test_ngrams_continue_and_repeat() -> None:
    generator, _ = make()
    job = Job([10, 11, 12, 13, 14, 10, 11, 12], 5)
    generator.enqueue(job)
    sequence = generator._sequences[job]
    drafter = NgramDrafter()
    guess = drafter.look(sequence)
    assert (guess.kind, guess.longest > 100) == (2, True)
    drafter.write([sequence], [9])
    assert sequence.buffer[8:17].tolist() == [13, 14, 10, 11, 12, 13, 14, 10, 11]
    assert sequence.num_drafts == 9
    assert sequence.num_tokens == 8


class Parrot(FakeRunner):
    """Says the tokens of a text again and again, whatever it is told; the fake model's checks hold all the same."""

    text = prompt_of(60, 5)

    def _logits(self, batch: Any, row: int) -> np.ndarray:
        super()._logits(batch, row)
        logits = np.zeros(128, np.float32)
        logits[self.text[(int(batch.positions[row]) + 1) % 60]] = 1.0
        return logits


@pytest.mark.usefixtures("always")
def test_what_repeats_is_guessed() -> None:
    from exllama.generator import Generator
    from tests.generator.fake_model import FakeModel

    runner = Parrot(16, 512, 2)
    generator = Generator(FakeModel(4096), runner, drafter=NgramDrafter())  # type: ignore[arg-type]
    job = Job([Parrot.text[0]], 600)
    finish(generator, [job])
    assert [*job.prompt, *job.text.encode()] == (Parrot.text * 11)[:601]
    assert job.finished.accepted_drafts > 450
    assert len(runner.rows) < 150


# --- A model that guesses ---


class Nearly(FakeRunner):
    """Agrees with the fake model except after a third of all histories."""

    def _logits(self, batch: Any, row: int) -> np.ndarray:
        end = int(batch.positions[row]) + 1
        pages = batch.page_table[batch.sequences[row], : -(-end // 256)]
        return nearly(int(self.cache.states[pages].reshape(-1)[:end].sum(dtype=np.uint64)))


def nearly(total: int) -> np.ndarray:
    return logits_from(mix(total) if mix(total) % 3 == 0 else total, False)


class Watched(OtherModelDrafter):
    """Compares every guess with what the model that guesses must say after these tokens and drafts."""

    def write(self, sequences: list[Sequence], counts: list[int]) -> None:
        super().write(sequences, counts)
        for sequence in sequences:
            n = sequence.num_tokens
            for end in range(n, n + sequence.num_drafts):
                state = total = 0
                for token in sequence.buffer[:end].tolist():
                    state = mix(state ^ (token + 1))
                    total = (total + state) % 2**64
                assert sequence.buffer[end] == int(nearly(total).argmax())


def with_model(pages: int = 64, rows: int = 512, batch: int = 16, draft_pages: int = 64) -> tuple[Any, Nearly]:
    small = Nearly(draft_pages, 64, batch)
    drafter = Watched(small, PagePool(draft_pages), 8192, 128, lambda: None)
    return make(pages, batch, rows, drafter=drafter)[0], small


@pytest.mark.usefixtures("always")
def test_a_model_guesses_for_a_batch() -> None:
    generator, small = with_model()
    jobs = [Job(prompt_of(5 + 60 * i, i), 120) for i in range(9)]
    finish(generator, jobs)
    assert_right(*jobs)
    for job in jobs:
        accepted, rejected = job.finished.accepted_drafts, job.finished.rejected_drafts
        assert accepted > 40
        assert rejected > 20
    assert max(small.rows) == 64, "prompts are read in pieces"
    longest = jobs[-1]
    again = Job([*longest.prompt, *longest.text.encode(), 7], 60)
    rows = sum(small.rows)
    finish(generator, [again])
    assert_right(again)
    assert sum(small.rows) - rows < 60 * 3 + 256, "it read the prefix again"
    generator.close()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("draft_pages", [1, 4])
def test_few_pages_for_guesses(draft_pages: int) -> None:
    """Who gets no page for guesses goes on without; nothing is lost when sequences are preempted and cancelled."""
    generator, _ = with_model(pages=8, rows=64, batch=6, draft_pages=draft_pages)
    jobs = [Job(prompt_of(30 + 50 * i, i), 350) for i in range(8)]
    cancelled = [generator.enqueue(Job(prompt_of(40, 50 + i), 300)) for i in range(2)]
    for _ in range(8):
        generator.step()
    for job in cancelled:
        generator.cancel(job)
    finish(generator, jobs)
    assert_right(*jobs)
    pool = generator._speculation._drafter._pool
    pool.check_integrity([])
    assert pool.num_available == draft_pages


# --- When to guess ---


def test_costs_are_learned_although_the_machine_is_busy_at_times() -> None:
    costs, noise = StepCosts(), np.random.default_rng(0)
    assert not costs.known
    assert costs.curve(2).tolist() == pytest.approx([0.85, 1.0, 1.15])
    for step in range(200):
        rows = (1, 1, 4, 9)[step % 4]
        busy = 20.0 if noise.random() < 0.15 else noise.uniform(0.95, 1.05)
        slow = 3.0 if 60 <= step < 120 else 1.0  # for a while all steps take longer
        costs.observe(rows, 0.002 * (1 + 0.3 * (rows - 1)) * busy * slow)
    assert costs.known
    assert costs.curve(9)[1] == pytest.approx(0.002, rel=0.15)
    assert costs.curve(9)[9] / costs.curve(9)[1] == pytest.approx(1 + 0.3 * 8, rel=0.2)


def test_one_slow_step_changes_nothing() -> None:
    costs = StepCosts()
    for rows, seconds in ((1, 0.01), (1, 0.01), (3, 0.5), (1, 0.01), (1, 0.01)):
        costs.observe(rows, seconds)
    assert choose_counts([0.9], [8], costs, 0.0, 1)[0] >= 4


def test_rates_follow_and_start_from_what_others_saw() -> None:
    everyone = Rate(0.5)
    one = Rate(everyone)
    assert one.value == 0.5
    for _ in range(100):
        one.learn(4, 4)
    assert one.value > 0.9
    assert Rate(everyone).value > 0.9
    for _ in range(100):
        one.learn(0, 1)
    assert one.value < 0.1


@given(
    st.lists(st.tuples(st.floats(0, 0.98), st.integers(0, 4)), min_size=1, max_size=3), st.floats(0, 1), st.floats(0, 1)
)
def test_the_choice_is_the_best_of_all(offers: list[tuple[float, int]], slope: float, guessing: float) -> None:
    """Against trying every combination. No slope depends on who gets the rows, so the best first is optimal."""
    costs = StepCosts()
    rows = len(offers)
    for count in range(1, rows + 13):
        costs.observe(count, 1 + slope * count)

    def speed(counts: tuple[int, ...]) -> float:
        gained = sum(sum(p**d for d in range(1, n + 1)) for (p, _), n in zip(offers, counts, strict=True))
        return (rows + gained) / (1 + slope * (rows + sum(counts)) + guessing * max(counts))

    chosen = choose_counts([p for p, _ in offers], [n for _, n in offers], costs, guessing, rows)
    assert all(0 <= count <= most for count, (_, most) in zip(chosen, offers, strict=True))
    none = speed((0,) * rows)
    best = max(speed(tuple(each)) for each in np.ndindex(*(most + 1 for _, most in offers)))
    if any(chosen):
        assert speed(tuple(chosen)) >= 1.02 * none
    else:
        assert best <= 1.1 * none or guessing > 0
    if guessing == 0:
        assert speed(tuple(chosen)) >= best / 1.04


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row more costs a tenth of a step, whatever the clock says."""
    monkeypatch.setattr(StepCosts, "observe", lambda *times: None)


@pytest.mark.usefixtures("steady")
def test_hopeless_guesses_become_rare() -> None:
    generator, runner = make(pages=64, batch=1, context=16000, drafter=Foresight(100))
    job = Job(prompt_of(9, 0), 2000)
    finish(generator, [job])
    assert_right(job)
    assert job.finished.rejected_drafts < 60
    assert len(runner.rows) > 1950


@pytest.mark.usefixtures("steady")
def test_hope_comes_back() -> None:
    """A text that starts to repeat is noticed, although guesses were given up before."""
    drafter = Foresight(100)
    generator, _ = make(pages=64, batch=1, context=16000, drafter=drafter)
    job = generator.enqueue(Job(prompt_of(9, 0), 3000))
    for _ in range(800):
        generator.step()
    drafter.wrong = 0
    while generator.active:
        generator.step()
    assert_right(job)
    assert job.finished.accepted_drafts > 1000


def test_ended_sequences_are_forgotten() -> None:
    generator, _ = make(drafter=Foresight(30))
    finish(generator, [Job(prompt_of(9, i), 30) for i in range(20)])
    assert not generator._speculation._records
    assert speculation.MAX_DRAFTS >= 8


@pytest.mark.usefixtures("always")
def test_drafts_whose_keys_cannot_be_stored_do_no_harm() -> None:
    """A wrong guess ends guessing, a right one ends the job where it would end without."""
    prompt = prompt_of(40, 0)
    answer = answer_of(prompt, 80)
    for token in range(3, 128, 7):
        if token in prompt:
            continue
        ends = []
        for drafter in (None, Foresight(30)):
            generator, runner = make(drafter=drafter)
            runner.unstorable = token
            job = Job(prompt, 80)
            finish(generator, [job])
            ends.append((job.text, job.finished.reason, job.finished.new_tokens, str(job.finished.error)))
        assert ends[0] == ends[1]
        assert (ends[0][1] == "error") == (token in answer[:-1])
