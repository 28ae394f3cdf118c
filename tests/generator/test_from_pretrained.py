"""From a folder on disk to answers: arguments, their refusals, and text compared with transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedModel

import exllama
from exllama import ContextError, Generator, Job, Sampling, UsageError
from exllama.generator import options
from exllama.generator.options import cache_pages
from tests.models.toys import save, toy_config, toy_model

CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A toy llama with a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("toy")
    model = toy_model(toy_config("llama"))
    save(model, folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.save(str(folder / "tokenizer.json"))
    content = {"eos_token": "<|im_end|>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder, model


def greedy(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    with torch.no_grad():
        found = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=257)
    return found[0, len(ids) :].tolist()


@pytest.mark.parametrize(("device", "cache"), [("reference", "fp32"), ("emu:0", "fp16")])
def test_greedy_answers_equal_transformers(device: str, cache: str, toy: tuple[Path, PreTrainedModel]) -> None:
    folder, model = toy
    prompts = [[5, 6, 7], list(range(250)), [200] * 40]
    wishes: dict[str, Any] = {"device": device, "cache": cache, "cache_tokens": 2000, "chunk_size": 64}
    with Generator.from_pretrained(folder, **wishes) as generator:
        jobs = [generator.enqueue(Job(prompt, 20)) for prompt in prompts]
        tokens: dict[Job, list[int]] = {job: [] for job in jobs}
        while generator.active:
            for event in generator.step():
                tokens[event.job] += getattr(event, "token_ids", ())
        for job, prompt in zip(jobs, prompts, strict=True):
            expected = greedy(model, prompt, 20)
            assert tokens[job] == [t for t in expected if t != 257]
            assert job.text == generator.tokenizer.decode(tokens[job], skip_special_tokens=True)


@pytest.mark.parametrize("cache", ["fp16", "q8", "q6", "q4", "8,4"])
def test_every_kind_of_cache_answers(toy: tuple[Path, PreTrainedModel], cache: str) -> None:
    with Generator.from_pretrained(toy[0], cache=cache, cache_tokens=300, max_batch_size=2, threads=1) as generator:
        assert (generator.cache_tokens, generator.context_length) == (512, 512)
        answers = generator.generate(["one", "two", "three"], 10, Sampling(seed=1))
        assert answers == [generator.generate(prompt, 10, Sampling(seed=1)) for prompt in ("one", "two", "three")]
        assert generator.chat([{"role": "user", "content": "hi"}], 5) == generator.generate(
            generator.tokenizer.encode_chat([{"role": "user", "content": "hi"}]), 5
        )
        generator.check_integrity()
        with pytest.raises(ContextError, match="the cache holds 512"):
            generator.generate("x" * 512)


def test_sizes_by_default(toy: tuple[Path, PreTrainedModel], monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with Generator.from_pretrained(toy[0]) as generator:
        assert (generator.context_length, generator.cache_tokens) == (1024, 1024)
    with Generator.from_pretrained(toy[0], context=500) as generator:
        assert (generator.context_length, generator.cache_tokens) == (500, 512)
    monkeypatch.setattr(options, "memory", lambda: (1 << 30, 4 * 2 * 2 * 2 * 32 * 256 * 2 * 2))
    with caplog.at_level("WARNING"), Generator.from_pretrained(toy[0]) as generator:
        assert generator.cache_tokens == 512
    assert "512 of the model's 1024 tokens" in caplog.text


def test_unknown_memory_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "memory", lambda: (0, 0))
    assert cache_pages([], "fp16", None, 1000) == 4


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu', expected auto, cpu"),
        ({"gpu_split": [8.0]}, "gpu_split is .*one device"),
        ({"gpu_split": "auto"}, "gpu_split is 'auto'"),
        ({"gpu_layers": 4}, "gpu_layers is 4"),
        ({"draft": "skip:x"}, "draft is 'skip:x', expected skip:N"),
        ({"draft": "skip:1"}, "skip:1 was asked for, but of this model's 2 blocks"),
        ({"max_queue": 0}, "max_queue is 0"),
        ({"acceptance": "maybe"}, "acceptance is 'maybe', expected drawn or rejection"),
        ({"cache": "q9"}, "cache kind is 'q9'"),
        ({"cache_tokens": 0}, "cache_tokens is 0"),
        ({"cache_tokens": True}, "cache_tokens is True"),
        ({"chunk_size": -1}, "chunk_size is -1"),
        ({"max_batch_size": 1.5}, "max_batch_size is 1.5"),
        ({"cache_tokns": 5}, "no argument 'cache_tokns'.*context, exact"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(toy: tuple[Path, PreTrainedModel], wish: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Generator.from_pretrained(toy[0], **wish)


def test_harmless_wishes(toy: tuple[Path, PreTrainedModel]) -> None:
    with Generator.from_pretrained(toy[0], gpu_layers=0, exact=True, draft=None, device="cpu") as generator:
        assert generator.model.device == "cpu"


def test_chunk_size_is_never_less_than_a_row_per_sequence(toy: tuple[Path, PreTrainedModel]) -> None:
    with Generator.from_pretrained(toy[0], chunk_size=1, max_batch_size=4) as generator:
        assert len(generator.generate(["a", "b", "c", "d", "e"], 3)) == 5


def test_closing_stops_other_threads(toy: tuple[Path, PreTrainedModel]) -> None:
    generator = Generator.from_pretrained(toy[0], max_batch_size=2)
    caught: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                generator.generate("x", 50)
        except UsageError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    generator.close()
    thread.join(30)
    assert len(caught) == 1


def test_the_package_offers_its_names() -> None:
    assert exllama.__version__
    assert set(exllama.__all__) <= set(dir(exllama))
    for name in exllama.__all__:
        assert getattr(exllama, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        exllama.generate  # noqa: B018


def test_importing_costs_nothing() -> None:
    """It brings in neither torch nor native code, and the first name starts no thread and no GPU."""
    code = (
        "import sys, os, threading; before = dict(os.environ)\n"
        "import exllama\n"
        "assert not {'torch', 'numpy', 'exllama_ext._C', 'tokenizers'} & set(sys.modules), sorted(sys.modules)\n"
        "import torch; threads = torch.get_num_threads()\n"
        "exllama.Generator\n"
        "assert torch.get_num_threads() == threads and before == dict(os.environ) and threading.active_count() == 1\n"
        "assert not torch.cuda.is_initialized() and 'transformers' not in sys.modules and 'jinja2' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
