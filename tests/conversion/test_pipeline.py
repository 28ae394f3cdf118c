"""Whole conversions of toy models with the simplest quantizer, and what a bad request is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.job import WORK
from conversion.pipeline import convert
from conversion.source import SourceModel
from exllama.engine.model import Model
from exllama.errors import ConversionError
from exllama.lock import exclusive
from tests.conversion.toys import SMALL, RoundToNearest, toy
from tests.models.toys import expected_logits, random_ids, relative_error

REPORTS = {"report.json", "report.html"}  # they tell how long it took


def made_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in REPORTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("source"))[0]


@pytest.fixture(scope="module")
def converted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It at 4 bits, made without interruption."""
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(folder, out, SMALL, RoundToNearest())
    return out


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {}),
        ("qwen3", {"num_hidden_layers": 4}),
    ],
)
def test_every_architecture(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """At 8 bits all linears are nearly as before, and transformers says so of what the engine reads."""
    source, model = toy(tmp_path / "toy", model_type, **changes)
    rates = tmp_path / "rates.json"
    rates.write_text('{"default": 8}')
    out = tmp_path / "out"
    report = convert(source, out, replace(SMALL, recipe=rates, head_bits=8.0), RoundToNearest())
    ids = random_ids(40)
    with Model.from_pretrained(out, device="reference") as made:
        assert relative_error(made.logits(ids), expected_logits(model, ids)) < 0.03
        assert not made.config.tied_head
    assert 0 < report["kl"]["mean"] < 0.01
    assert len(report["linears"]) == 7 * model.config.num_hidden_layers + 1
    assert not (out / WORK / "linears").exists()


def test_files_and_report(folder: Path, converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["quantization_config"]["head_bits"] == 16.0  # this quantizer stores fp16
    assert config["hidden_size"] == 64
    assert (converted / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    tensors = load_file(converted / "model.safetensors")
    assert tensors["model.norm.weight"].dtype == torch.float16
    assert set(tensors) == set(load_file(folder / "model.safetensors"))
    report = json.loads((converted / "report.json").read_text())
    assert report["bytes"] == (converted / "model.safetensors").stat().st_size
    assert {"measure", "quantize", "compile", "verify"} == set(report["seconds"])
    page = (converted / "report.html").read_text()
    assert page.count("<rect ") == 2 * 15
    assert "http" not in page


def test_allocation_uses_the_budget_and_gives_sensitive_linears_more(converted: Path) -> None:
    rates = json.loads((converted / "recipe.json").read_text())["modules"]
    measured = json.loads((converted / "measurement.json").read_text())
    assert rates.pop("lm_head") == 6.0
    sizes = {name: each["out_features"] * each["in_features"] for name, each in measured["linears"].items()}
    mean = sum(rates[name] * sizes[name] for name in rates) / sum(sizes[name] for name in rates)
    assert 3.9 < mean <= 4.0
    assert len(set(rates.values())) > 1
    keen = {name: measured["linears"][name]["kl"] / sizes[name] for name in rates}
    assert rates[max(keen, key=keen.__getitem__)] > rates[min(keen, key=keen.__getitem__)]


def test_the_same_again_gives_the_same_bytes(folder: Path, converted: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "again", SMALL, RoundToNearest())
    assert made_files(tmp_path / "again") == made_files(converted)


class Interrupted(RoundToNearest):
    """Stops at the nth linear, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def quantize(self, weight: torch.Tensor, hessian: torch.Tensor, rate: float, seed: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().quantize(weight, hessian, rate, seed)


@pytest.mark.parametrize("after", [2, 6, 19])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(
    folder: Path, converted: Path, tmp_path: Path, after: int
) -> None:
    """Within the five samples of the measurement, within and between modules, and before the last linear."""
    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out", SMALL, Interrupted(after))
    assert not (tmp_path / "out" / "config.json").exists()
    convert(folder, tmp_path / "out", SMALL, RoundToNearest(), resume=True)
    assert made_files(tmp_path / "out") == made_files(converted)


def test_a_finished_conversion_is_left_alone(folder: Path, converted: Path) -> None:
    before = (converted / "model.safetensors").stat().st_mtime_ns
    report = convert(folder, converted, SMALL, Interrupted(0))
    assert report == json.loads((converted / "report.json").read_text())
    assert (converted / "model.safetensors").stat().st_mtime_ns == before


def test_measuring_alone_and_then_the_rest(folder: Path, converted: Path, tmp_path: Path) -> None:
    found = convert(folder, tmp_path / "out", SMALL, RoundToNearest(), measure_only=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {WORK, "recipe.json", "measurement.json"}
    assert found == json.loads((converted / "recipe.json").read_text())
    other = convert(
        folder, tmp_path / "by recipe", replace(SMALL, recipe=tmp_path / "out" / "recipe.json"), RoundToNearest()
    )
    assert other["bits"]["body"] == 16
    assert (tmp_path / "by recipe" / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


def test_another_job_in_the_folder_is_told(folder: Path, converted: Path) -> None:
    with pytest.raises(ConversionError, match=r"bits = 4\.0, and 5.0 was asked for"):
        convert(folder, converted, replace(SMALL, bits=5.0), RoundToNearest())


def test_a_folder_with_other_things_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ConversionError, match="not empty"):
        convert(folder, tmp_path, SMALL, RoundToNearest())
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(ConversionError, match="no conversion to resume"):
        convert(folder, tmp_path / "new", SMALL, RoundToNearest(), resume=True)


def test_a_second_process_is_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / WORK).mkdir(parents=True)
    with exclusive(out / WORK / "lock", lambda: None), pytest.raises(ConversionError, match="another process"):
        convert(folder, out, SMALL, RoundToNearest())


def changed(folder: Path, target: Path, edit: Any) -> Path:
    """A copy of a model whose tensors are edited."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_nan_weights_are_named(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{name}.weight"][3, 4] = torch.nan

    with pytest.raises(ConversionError, match=f"{name}.weight holds 1 values"):
        convert(changed(folder, tmp_path / "bad", poison), tmp_path / "out", SMALL, RoundToNearest())


def test_dead_inputs_are_converted_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A norm of zeros makes the Hessians of gate and up zero, and those of down too."""

    def silence(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.post_attention_layernorm.weight"].zero_()

    report = convert(changed(folder, tmp_path / "dead", silence), tmp_path / "out", SMALL, RoundToNearest())
    assert "model.layers.1.mlp.gate_proj: its input is zero" in caplog.text
    assert report["kl"]["mean"] < 1


def test_a_quantized_model_is_refused_with_a_way_on(folder: Path, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"already quantized \(exl3\).*--requantize"):
        convert(converted, tmp_path / "out", SMALL, RoundToNearest())
    convert(converted, tmp_path / "out", SMALL, RoundToNearest(), requantize=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_bits": 5.0}, r"--head-bits: 5.0 bits per weight are not offered; there are 2, 3, 4, 6, 8"),
        ({"bits": 1.5}, "ask for more bits"),
        ({"rows": 0}, "expected at least 1"),
        ({"calibration": Path("/nowhere/text.txt")}, "cannot be read"),
    ],
)
def test_impossible_wishes(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "out", replace(SMALL, **change), RoundToNearest())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"modules": {"model.layers.9.mlp.up_proj": 4}}', "which the model does not have"),
        ('{"modules": {"lm_head": 4}}', "says nothing about model.layers.0.self_attn.q_proj"),
        ('{"default": 5}', "not offered"),
        ('{"default": "4"}', "not offered"),
        ('{"modules": []}', "expected rates by name"),
        ("[]", "cannot be read"),
    ],
)
def test_bad_recipes(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(content)
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "out", replace(SMALL, recipe=recipe), RoundToNearest())


def test_memory_is_refused_before_anything_is_done(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"needs about 0\.4 GB, and --max-memory is 0\.1 GB"):
        convert(folder, tmp_path / "out", SMALL, RoundToNearest(), max_memory=100_000_000)
    assert not (tmp_path / "out").exists()


def test_an_expected_bug_of_a_quantizer_is_caught(folder: Path, tmp_path: Path) -> None:
    """What it says of its weights is compared with what the reader finds."""

    class Liar(RoundToNearest):
        def quantize(self, weight: torch.Tensor, hessian: torch.Tensor, rate: float, seed: int) -> Any:
            made = super().quantize(weight, hessian, rate, seed)
            return replace(made, weight=made.weight * 1.01)

    with pytest.raises(ConversionError, match="reads differently"):
        convert(folder, tmp_path / "out", SMALL, Liar())


def test_shapes_need_no_weights(folder: Path) -> None:
    from conversion.pipeline import linear_shapes

    with SourceModel(folder) as source:
        shapes = linear_shapes(source)
    assert shapes["model.layers.1.mlp.down_proj"] == (64, 96)
    assert list(shapes)[-1] == "lm_head"
    assert len(shapes) == 15
