"""The command lines: convert, inspect, compare; and a conversion that is killed or runs out of disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conversion.pipeline import convert
from conversion.source import SourceModel
from exllama import convert as command
from exllama import eval as evaluation
from exllama.errors import ConversionError
from tests.conversion.toys import SMALL, RoundToNearest, toy
from tests.models.exl3_toys import save_exl3
from tests.models.toys import toy_config, toy_model
from tests.unit.tree import ROOT

REPORTS = {"report.json", "report.html"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("source"))[0]


# The child converts with files that end the process before they get their name, or that may not grow.
CHILD = """
import os, resource, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from conversion.pipeline import convert
from tests.conversion.toys import SMALL, RoundToNearest
source, out, what, value = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
rename = os.replace
def dying(part, path):
    if Path(path).name == value:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(part, path)
if what == "kill":
    os.replace = dying
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), int(value)))
try:
    convert(source, out, SMALL, RoundToNearest())
except OSError as error:
    sys.exit(f"told: {error.strerror}")
"""


def child(folder: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-c", CHILD, str(folder), str(out), *words]
    return subprocess.run(command_line, cwd=ROOT, env=env, capture_output=True, text=True)


def made_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in REPORTS}


@pytest.mark.skipif(os.name == "nt", reason="signals and limits are POSIX")
def test_killed_and_out_of_disk_it_resumes_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Killed in the measurement, among the linears and with the last large file; then that does not fit the disk."""
    convert(folder, tmp_path / "whole", SMALL, RoundToNearest())
    out = tmp_path / "out"
    for name in ("measurement.json", "model.layers.1.self_attn.v_proj.safetensors", "model.safetensors"):
        assert child(folder, out, "kill", name).returncode == -signal.SIGKILL
        assert not (out / "config.json").exists()
        assert list(out.rglob("*.part"))
    largest = (tmp_path / "whole" / "model.safetensors").stat().st_size
    full = child(folder, out, "full", str(largest - 1))
    assert full.returncode == 1
    assert "told: File too large" in full.stderr
    assert not list(out.rglob("*.part"))
    assert not (out / "model.safetensors").exists()
    convert(folder, out, SMALL, RoundToNearest(), resume=True)
    assert made_files(out) == made_files(tmp_path / "whole")


def test_inspect(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    stored = load_file(folder / "model.safetensors")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == sorted(stored)
    assert lines[-1].split()[:3] == ["F32", str(len(stored)), "parts"]
    assert command.main(["inspect", str(folder / "model.safetensors"), "--json", "-"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[-1] == {"format": "F32", "parts": len(stored), "nbytes": sum(t.nbytes for t in stored.values())}
    assert {line["name"] for line in found[:-1]} == set(stored)


def test_inspect_counts_the_bits_of_formats_of_several_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_exl3(toy_model(toy_config("llama")), tmp_path / "exl3", rates=(3,))
    assert command.main(["inspect", str(source), "--json", "-"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["name"]: line for line in lines if "name" in line}
    gate = found["model.layers.0.mlp.gate_proj"]  # 96 x 64, stored as 128 x 128 at 3 bits, scales and a mark
    assert (gate["format"], gate["shape"]) == ("EXL3", [96, 64])
    assert gate["bits"] * 96 * 64 == 3 * 128 * 128 + 16 * 256 + 32
    assert {line["format"] for line in lines} == {"EXL3", "F16"}


def test_compare(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 8)
    made = []
    for seed, rate in enumerate((8, 3)):
        recipe = tmp_path / f"{rate}.json"
        recipe.write_text(f'{{"default": {rate}}}')
        settings = replace(SMALL, recipe=recipe, head_bits=8.0, seed=seed)
        convert(folder, tmp_path / str(rate), settings, RoundToNearest())
        made.append(str(tmp_path / str(rate)))
    words = ["compare", *made, "--reference", str(folder), "--text", str(text), "--context", "64"]
    assert evaluation.main([*words, "--json", "-"]) == 0
    good, bad = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert good["bits"] == bad["bits"] == 16.0
    assert 0 < good["mean"] < bad["mean"] / 10
    assert evaluation.main(["kl", "-m", made[1], "--reference", *words[4:]]) == 0
    single = json.loads(capsys.readouterr().out)
    assert {key: bad[key] for key in ("mean", "median", "tokens", "same_top")} == {
        key: single[key] for key in ("mean", "median", "tokens", "same_top")
    }
    assert evaluation.main([*words, "--plot", str(tmp_path / "plot.svg")]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert (tmp_path / "plot.svg").read_text().count("<circle") == 2


def test_flags() -> None:
    words = ["-m", "IN", "-o", "OUT", "--rows", "3", "--bits", "2.5", "--codebook", "mcg", "--seed", "0"]
    args = command.parser().parse_args(words)
    assert (args.bits, args.codebook, args.seed, args.rows, args.format) == (2.5, "mcg", 0, 3, "exl3")


def test_a_device_that_torch_lacks_is_told(folder: Path) -> None:
    with pytest.raises(ConversionError, match="torch cannot compute on 'abacus'"):
        SourceModel(folder, "abacus")
