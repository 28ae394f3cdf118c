"""bench, eval and devices on the default model: their JSON is what their documents promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.footprint import measure, size
from exllama import bench, eval
from exllama.devices import __main__ as devices
from exllama.loader.sources import resolve

pytestmark = pytest.mark.model
ROOT = Path(__file__).resolve().parents[2]
BENCH_KEYS = {"test", "tokens_per_second", "min", "max", "runs", "threads", "device", "bytes", "roofline_fraction"}


def test_bench_json(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    words = f"-m {resolve('default')} -p 64 -n 8 -d 0,300 -b 1,2 -r 2 --threads 2 --json {path}"
    assert bench.main(words.split()) == 0
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["test"] for line in lines] == ["pp64", "tg8", "tg8@b2", "pp64@d300", "tg8@d300", "tg8@d300@b2"]
    for line in lines:
        assert set(line) == BENCH_KEYS
        assert 0 < line["min"] <= line["tokens_per_second"] <= line["max"]
        assert (line["runs"], line["threads"], line["device"]) == (2, 2, "cpu")
        assert line["roofline_fraction"] > 0
    size = Path(str(resolve("default"))).stat().st_size
    assert 0.9 * size < lines[1]["bytes"] < 1.3 * size
    assert lines[4]["bytes"] > lines[1]["bytes"]


def test_bench_of_drafts(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    words = f"-m {resolve('default')} -p 0 -n 24 -r 1 --threads 2 --draft ngram --cache-tokens 1024 --json {path}"
    assert bench.main(words.split()) == 0
    lines = {line["test"]: line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    assert list(lines) == ["tg24", "copy24", "copy24+ngram", "story24", "story24+ngram"]
    for line in list(lines.values())[1:]:
        assert set(line) == BENCH_KEYS - {"bytes", "roofline_fraction"} | {"accepted_drafts", "rejected_drafts"}
        assert 0 < line["min"] <= line["tokens_per_second"] <= line["max"]
    assert lines["copy24"]["accepted_drafts"] == lines["copy24"]["rejected_drafts"] == 0
    assert lines["copy24+ngram"]["accepted_drafts"] > 4


def test_eval_json(capsys: pytest.CaptureFixture[str]) -> None:
    common = f"-m {resolve('default')} --text {ROOT / 'README.md'} --context 256 --tokens 512"
    assert eval.main(["ppl", *common.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 2 * 255
    assert 5 < found["perplexity"] < 500
    assert eval.main(["kl", *common.split(), "--reference-weights", "float32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["median"] <= found["mean"] <= 0.01
    assert found["mean"] <= found["percentile_99_9"] <= found["maximum"]
    assert found["same_top"] > 0.95


def test_the_plan_is_near_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    source = resolve("default")
    assert devices.main(["plan", "--json", "-m", str(source), "--cache-tokens", "1024"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["layers"] == {"total": 31, "on_gpu": 0}
    assert plan["max_context"] == 8192
    share = plan["devices"][0]
    assert share["weights"] == pytest.approx(source.stat().st_size, rel=0.05)
    assert share["cache"] == 4 * 256 * 30 * 2 * 3 * 64 * 2


def test_memory_is_bounded_and_comes_back() -> None:
    """No tensor exists twice after loading: the file, 15 % and 100 MB hold it, a small cache and the first step.

    Close frees weights (57 % of it) and cache (14 %); modules that were imported meanwhile stay.
    """
    model = resolve("default")
    found = measure(model)
    assert found["peak_mib"] * (1 << 20) < 1.15 * size(model) + 100e6
    assert found["left_mib"] < 0.4 * found["resident_mib"]
