"""Log-probabilities and logits of new tokens, against numpy in float64 on a model whose logits are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exllama.errors import UsageError
from exllama.generator import Finished, Job, Sampling, Text
from exllama.generator.sampling import stack
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.logprobs import largest
from tests.generator.fake_model import VOCAB, logits_of, make

SAMPLINGS = [
    Sampling(temperature=0.0), Sampling(0.8, top_k=9, seed=4), Sampling(typical_p=0.8, seed=4),
    Sampling(mirostat_mode=2, mirostat_tau=2.0, seed=4), Sampling(adaptive_target=0.3, min_p=0.05, seed=4),
]  # fmt: skip


def log_shares(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    return values - values.max() - np.log(np.exp(values - values.max()).sum())


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top_k", "typical", "mirostat", "adaptive"])
def test_every_token_comes_with_its_logprobs(sampling: Sampling) -> None:
    generator, _ = make()
    plain = Job("hello", 30, sampling)
    assert generator.generate(plain) == generator.generate("hello", 30, sampling)
    job = Job("hello", 30, sampling, logprobs=5, filtered_logprobs=True, return_logits=True)
    generator.enqueue(job)
    events = []
    while generator.active:
        events += generator.step()
    texts = [event for event in events if isinstance(event, Text)]
    tokens = [token for event in texts for token in event.token_ids]
    assert job.text == plain.text, "asking must not change the answer"
    assert [len(event.logprobs) for event in texts] == [len(event.token_ids) for event in texts]
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.logprobs == tuple(each for event in texts for each in event.logprobs)
    assert torch.equal(end.logits, torch.cat([event.logits for event in texts]))
    sampler, history = JobSampler(sampling, 4, VOCAB), list(b"hello")
    for token, found, row in zip(tokens, end.logprobs, end.logits, strict=True):
        logits = logits_of(history)
        assert np.array_equal(row.numpy(), logits)
        expected = log_shares(logits)
        best = np.argsort(-logits, kind="stable")[:5]
        assert found.token_id == token
        assert found.logprob == pytest.approx(expected[token], abs=1e-5)
        assert [each for each, _ in found.top] == best.tolist()
        assert [value for _, value in found.top] == pytest.approx(expected[best].tolist(), abs=1e-5)
        left = stack.distribution(logits, sampler, np.array(history, np.int32))
        shares = dict(zip(left.ids.tolist(), left.logits.tolist(), strict=True))
        assert found.filtered_logprob == pytest.approx(shares[token])
        assert dict(found.filtered_top) == pytest.approx({each: shares[each] for each, _ in found.filtered_top})
        assert len(found.filtered_top) == min(5, len(shares))
        assert min(value for _, value in found.filtered_top) >= sorted(shares.values())[-len(found.filtered_top)]
        assert stack.sample(logits, sampler, np.array(history, np.int32)) == token
        history.append(token)


def test_nothing_is_kept_unasked() -> None:
    generator, _ = make()
    job = Job("hello", 5)
    generator.generate(job)
    assert job.finished is not None
    assert (job.finished.logprobs, job.finished.logits) == ((), None)


def test_tokens_of_a_stop_string_have_logprobs_at_the_end_alone() -> None:
    generator, _ = make()
    whole = generator.generate("hello", 60)
    job = Job("hello", 60, stop=[whole[20:23]], logprobs=0)
    shown = [each for event in generator.stream(job) for each in event.logprobs]
    assert job.finished is not None
    assert [each.token_id for each in shown] == list(job.text.encode())
    assert [each.token_id for each in job.finished.logprobs] == list(whole[: len(job.text) + 3].encode())
    assert all(each.top == () and each.filtered_logprob is None for each in shown)


def test_largest_breaks_ties_by_place() -> None:
    row = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, -torch.inf])
    assert largest(row, 0) == []
    assert largest(row, 3) == [1, 3, 2]
    assert largest(row, 100) == [1, 3, 2, 4, 5, 0, 6]


@pytest.mark.parametrize(
    "wanted", [{"logprobs": -1}, {"logprobs": True}, {"logprobs": 2000}, {"filtered_logprobs": True}]
)
def test_meaningless_wishes_are_refused(wanted: dict) -> None:
    with pytest.raises(UsageError, match=r"logprobs .*expected"):
        Job("x", **wanted)
