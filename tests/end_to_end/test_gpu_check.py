"""The one command for machines with a GPU, walked on the emulator with tiny shapes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check(out: Path, part: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "gpu-check", "DEVICE=emu", f"PART={part}", f"OUT={out}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_the_walk_on_the_emulator(tmp_path: Path) -> None:
    done = check(tmp_path, "models,kernels,peers,sanitizer")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert list(report["parts"]) == ["build", "models", "kernels", "peers", "sanitizer"]
    assert not any("error" in part for part in report["parts"].values())
    kinds = {line["test"] for part in report["parts"].values() for line in part["lines"]}
    assert {"copy", "decode", "prefill", "linear", "attention"} <= kinds
    for line in report["parts"]["models"]["lines"]:
        assert line["tokens_per_second"] > 0
    text = (tmp_path / "gpu_check.md").read_text()
    assert "times mean nothing" in text
    assert "| linear |" in text


def test_unknown_part(tmp_path: Path) -> None:
    done = check(tmp_path, "warp")
    assert done.returncode != 0
    assert "there is no part 'warp'" in done.stderr
