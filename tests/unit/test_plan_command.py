"""`python -m exllama.devices plan` and `recommend` as a person and a script see them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from exllama.cli import recommend
from exllama.cli.plan import parse_machine
from exllama.devices import __main__ as devices
from exllama.errors import UsageError

LAYERS, HIDDEN, INNER, VOCAB = 40, 1024, 4096, 32000
CONFIG = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    "rope_theta": 10000.0,
}  # fmt: skip
BLOCK = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (256, HIDDEN), "self_attn.v_proj": (256, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.3 GB of weights that were never written: the file is a header and a hole."""
    made = tmp_path_factory.mktemp("model")
    shapes = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in BLOCK.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (made / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


def plan(folder: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert devices.main(["plan", "-m", str(folder), "--json", *words]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_from_metadata(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--machine", "2x1GiB,cpu:8GiB", "--context", "4096", "--cache", "q4")
    found = plan(folder, capsys, *words)
    assert found["layers"] == {"total": 41, "on_gpu": found["layers"]["on_gpu"]}
    assert 0 < found["layers"]["on_gpu"] < 41
    assert [share["device"] for share in found["devices"]] == ["cuda:0", "cuda:1", "cpu"]
    weights = sum(share["weights"] for share in found["devices"])
    assert weights == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.01)
    assert all(share["total"] <= share["free"] for share in found["devices"])
    small = plan(folder, capsys, *words, "--low-vram")
    assert small["layers"]["on_gpu"] > found["layers"]["on_gpu"]
    assert small["devices"][0]["workspace"] < found["devices"][0]["workspace"] / 4


def test_the_plan_for_a_person(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert devices.main(["plan", "-m", str(folder), "--machine", "24GiB,cpu:8GiB", "--context", "4096"]) == 0
    shown = capsys.readouterr().out
    assert "embedding, 0-39, head" in shown
    assert "offloaded 41/41 layers to GPU" in shown
    assert devices.main(["plan", "-m", str(folder), "--machine", "1GiB,cpu:2GiB", "--gpu-layers", "-1"]) == 1
    shown = capsys.readouterr().out
    assert "Insufficient VRAM for model and cache: cuda:0: " in shown
    assert "it does not fit" in shown


def test_wishes_reach_the_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--machine", "24GiB,24GiB,cpu:16GiB", "--context", "4096")
    assert plan(folder, capsys, *words, "--gpu-layers", "10")["layers"]["on_gpu"] == 10
    assert len(plan(folder, capsys, *words)["devices"]) == 2
    assert len(plan(folder, capsys, *words, "--spread")["devices"]) == 3
    split = plan(folder, capsys, *words, "--gpu-split", "0,20")
    assert [share["device"] for share in split["devices"]] == ["cuda:1", "cpu"]
    kept = plan(folder, capsys, *words, "--reserve", "23,0")
    assert [share["device"] for share in kept["devices"]] == ["cuda:1", "cpu"]
    assert plan(folder, capsys, *words, "--device", "cpu")["layers"]["on_gpu"] == 0
    alone = plan(folder, capsys, *words, "--device", "cuda:1")
    assert [share["device"] for share in alone["devices"]] == ["cuda:1", "cpu"]
    with pytest.raises(UsageError, match=r"Too many entries in gpu_split\. 2 GPU devices are available"):
        devices.main(["plan", "-m", str(folder), *words, "--gpu-split", "8,8,8"])
    with pytest.raises(
        UsageError, match="device 'cuda:7': there is no such device; this machine has cuda:0, cuda:1, cpu"
    ):
        devices.main(["plan", "-m", str(folder), *words, "--device", "cuda:7"])


def test_emulated_gpus_are_planned_for_when_they_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXLLAMA_EMU_DEVICES", "2x2GiB")
    words = ("--context", "512", "--low-vram")
    assert plan(folder, capsys, *words, "--gpu-split", "auto")["devices"][0]["device"] == "emu:0"
    assert plan(folder, capsys, *words, "--device", "emu:1", "--gpu-layers", "3")["devices"][0]["device"] == "emu:1"


@pytest.mark.parametrize("text", ["", "x", "24", "24GB", "0x24GiB,", "cpu:", "cpu:8GiB;", "1e3GiB"])
def test_machines_that_mean_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="--machine is"):
        parse_machine(text)


def test_machines() -> None:
    found = parse_machine("2x24GiB, 512MiB,cpu:64GiB")
    assert [(device.name, device.free) for device in found] == [
        ("cuda:0", 24 << 30), ("cuda:1", 24 << 30), ("cuda:2", 512 << 20), ("cpu", 64 << 30),
    ]  # fmt: skip


def test_recommend(capsys: pytest.CaptureFixture[str]) -> None:
    machine = ["--machine", "24GiB,cpu:32GiB"]
    assert devices.main(["recommend", "--parameters", "8B", *machine, "--bandwidth", "1000,50", "--json"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert [choice["bits"] for choice in choices] == sorted((choice["bits"] for choice in choices), reverse=True)
    four = next(choice for choice in choices if choice["bits"] == 4)
    assert four["gpu_layers"] == four["total_layers"]
    assert four["tokens_per_second"] == pytest.approx(1e12 / (8e9 * 4.5 / 8), rel=0.01)
    assert devices.main(["recommend", "--parameters", "405B", *machine]) == 1
    assert "nothing fits" in capsys.readouterr().out
    assert devices.main(["recommend", "--parameters", "32B", *machine]) == 0
    assert "take 5 bits per weight" in capsys.readouterr().out


def test_recommend_for_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert devices.main(["recommend", "-m", str(folder), "--machine", "8GiB,cpu:8GiB", "--json"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert choices[0]["bits"] == 16
    assert choices[0]["bytes"] > choices[-1]["bytes"]


@pytest.mark.parametrize("text", ["", "8", "8T", "-8B", "0.001B", "9999B", "nanB"])
def test_numbers_of_weights_that_mean_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="--parameters is"):
        recommend.parameters(text)
    assert recommend.parameters("0.5b") == 5 * 10**8


def test_bandwidths_for_other_devices() -> None:
    with pytest.raises(UsageError, match="expected one above 0 for each of cuda:0, cpu"):
        recommend.bandwidths("900", parse_machine("24GiB,cpu:32GiB"))
