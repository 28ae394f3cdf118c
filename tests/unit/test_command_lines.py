"""Flags, JSON contracts, exit codes and messages of the command lines."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exllama import bench, chat, eval
from exllama.cli import benchmark, doctor
from exllama.cli.console import progress_bars, run_command_line, write_json
from exllama.cli.flags import (
    add_model_flags,
    gigabytes,
    model_options,
    non_negative_list,
    placement_options,
    positive,
    positive_list,
)
from exllama.devices import __main__ as devices
from exllama.errors import SourceError, UsageError
from tests.unit.tree import ROOT


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_flags(parser)
    return parser.parse_args(words)


def test_shared_flags_reach_the_generator_by_name() -> None:
    assert placement_options(flags()) == {"device": "auto", "cache": "fp16", "threads": None}
    found = placement_options(flags("--cache", "q8", "--cache-tokens", "512", "--threads", "3", "--gpu-layers", "0"))
    assert found == {"device": "auto", "cache": "q8", "threads": 3, "cache_tokens": 512, "gpu_layers": 0}
    assert placement_options(flags("--gpu-split", "8,10.5"))["gpu_split"] == [8.0, 10.5]
    assert placement_options(flags("--gpu-split", "auto"))["gpu_split"] == "auto"


def test_a_wish_for_a_gpu_is_refused_and_not_ignored() -> None:
    assert model_options(flags())["device"] == "cpu"
    for words in (("--gpu-split", "8"), ("--gpu-layers", "4")):
        with pytest.raises(UsageError, match="name it with --device"):
            model_options(flags(*words))


@pytest.mark.parametrize("text", ["", "8,", "x", "-1", "nan", "1e9", "inf"])
def test_gigabytes_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="--gpu-split"):
        gigabytes(text)


def test_number_lists() -> None:
    assert positive_list("1, 4,16") == [1, 4, 16]
    assert non_negative_list("0,4096") == [0, 4096]
    for text in ("0", "-1", "1.5", "", "x", "9" * 30, "²"):
        with pytest.raises(argparse.ArgumentTypeError):
            positive(text)


def test_write_json_streams_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    write_json(({"line": i} for i in range(2)), str(path))
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [{"line": 0}, {"line": 1}]
    write_json([{"ä": 1}], "-")
    assert capsys.readouterr().out == '{"ä": 1}\n'
    with pytest.raises(SourceError, match="cannot write"):
        write_json(iter([]), str(tmp_path / "no" / "folder"))


def test_failures_are_one_sentence_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> int:
        raise error

    assert run_command_line(lambda: 0) == 0
    assert run_command_line(lambda: fail(UsageError("what to do"))) == 1
    assert capsys.readouterr().err == "exllama: what to do\n"
    assert run_command_line(lambda: fail(KeyboardInterrupt())) == 130
    assert "stopped" in capsys.readouterr().err
    assert run_command_line(lambda: fail(MemoryError("x"))) == 1
    assert "out of memory" in capsys.readouterr().err


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as show:
        show("load", 0, 0)
        show("load", 5, 10)
        show("load", 10, 10)
    assert capsys.readouterr() == ("", "")


def module(name: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"exllama.{name}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("name", ["chat", "bench", "eval", "devices"])
def test_help_works(name: str) -> None:
    done = module(name, "--help")
    assert done.returncode == 0
    assert f"python -m exllama.{name}" in done.stdout


@pytest.mark.parametrize(
    ("name", "words", "complaint"),
    [
        ("bench", ["-m", "/no/such/model.gguf"], "/no/such/model.gguf"),
        ("bench", ["-p", "0", "-n", "0"], "nothing to measure"),
        ("eval", ["ppl", "--text", "/no/such/text"], "cannot read /no/such/text"),
        ("eval", ["kl", "--text", str(ROOT / "README.md")], "name one with --reference"),
        ("devices", ["plan", "-m", "/no/such/folder"], "/no/such/folder"),
        ("chat", ["-m", "/no/such/model.gguf"], "/no/such/model.gguf"),
        ("chat", ["--temperature", "-1"], "temperature is -1.0, expected"),
    ],
)
def test_wrong_words_give_a_sentence(name: str, words: list[str], complaint: str) -> None:
    done = module(name, *words, input="hello")
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("words", [["--threads", "0"], ["-r", "x"], ["-b", "0"], ["--unknown"]])
def test_wrong_flags_give_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main(words)
    assert caught.value.code == 2


def test_devices_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert devices.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"gpu_stats", "models_loaded", "inference_test"} <= set(report)
    assert report["inference_test"]["status"] == "success"
    assert report["inference_test"]["duration_seconds"] > 0
    assert report["models_loaded"] == 0
    assert report["gpu_stats"]["gpus"] or "No GPU detected" in report["gpu_stats"]["reason"]


def test_devices_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert devices.main([]) == 0
    shown = capsys.readouterr().out
    assert "instruction set" in shown
    assert "inference test: success" in shown


def test_a_machine_that_computes_wrongly_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TOLERANCE", 0.0)
    assert doctor.inference_test()["status"].startswith("failed: the result is off by")


def test_an_unknown_instruction_set_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXLLAMA_CPU_ISA", "mmx")
    report = doctor.inspect()
    assert report["inference_test"]["status"].startswith("failed: EXLLAMA_CPU_ISA is 'mmx'")
    assert "unavailable" in report["devices"][0]["instruction_set"]


def test_bench_test_names() -> None:
    made = benchmark.tests(512, 128, [0, 4096], [1, 16])
    names = ["pp512", "tg128", "tg128@b16", "pp512@d4096", "tg128@d4096", "tg128@d4096@b16"]
    assert [test.name for test in made] == names
    assert [test.name for test in benchmark.tests(0, 8, [0], [1])] == ["tg8"]


def test_parsers_have_the_contract_s_short_flags() -> None:
    words = "-m M -p 1 -n 2 -d 0,3 -b 1,4 -r 5 --threads 2 --json -"
    args = bench.parser().parse_args(words.split())
    assert (args.model, args.prefill, args.decode, args.depth, args.batch, args.runs) == ("M", 1, 2, [0, 3], [1, 4], 5)
    words = "kl -m M --reference R --text T --context 512 --tokens 9 --json -"
    assert eval.parser().parse_args(words.split()).reference == "R"
    assert chat.parser().parse_args([]).model == "default"


def shell(line: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A line for sh; {python} and ROOT stand for what they say. folder: goes before ROOT on the path."""
    path = os.pathsep.join(str(part) for part in (folder, ROOT) if part)
    env = {**os.environ, "PYTHONPATH": path, "EXLLAMA_CACHE_DIR": str(folder or ROOT / "no-cache")}
    command = ["sh", "-c", line.replace("{python}", shlex.quote(sys.executable))]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


posix = pytest.mark.skipif(os.name == "nt", reason="streams are closed by POSIX means")


@posix
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_streams_are_empty_ones(closed: str) -> None:
    done = shell(f"{{python}} -m exllama.chat -m /no/such/model {closed}")
    assert done.returncode == 1
    assert "no model at '/no/such/model'" in done.stderr
    assert "Traceback" not in done.stderr


@posix
@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_without_stderr_the_result_still_comes(stderr: str) -> None:
    done = shell(f"{{python}} -m exllama.devices --json {stderr}")
    assert done.returncode == 0
    assert json.loads(done.stdout)["inference_test"]["status"] == "success"
    assert shell(f"{{python}} -m exllama.chat -m /no/such/model </dev/null {stderr}").returncode == 1


@posix
def test_a_full_disk_behind_stdout() -> None:
    done = shell("{python} -m exllama.devices --json >/dev/full")
    assert done.returncode == 1
    assert done.stderr == "exllama: the output cannot be read or written: No space left on device\n"


@posix
def test_a_reader_that_has_gone() -> None:
    command = [sys.executable, "-m", "exllama.devices", "--json"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stderr
    child.stdout.close()
    assert (child.stderr.read(), child.wait(timeout=60)) == ("", 1)
    child.stderr.close()


@posix
def test_ctrl_c_while_starting(tmp_path: Path) -> None:
    """The signal arrives while torch is being imported, which takes most of the time before a model is read."""
    hook = "import os, signal, sys\nclass Finder:\n    def find_spec(self, name, *rest):\n"
    hook += "        if name == 'torch._C':\n            os.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "sitecustomize.py").write_text(hook + "sys.meta_path.insert(0, Finder())\n")
    for command in ("chat", "bench", "eval ppl --text x", "devices"):
        done = shell(f"{{python}} -m exllama.{command} </dev/null", tmp_path)
        assert (done.returncode, done.stderr) == (130, "exllama: stopped\n"), command


def test_help_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    for command in ("chat", "bench", "eval", "devices"):
        assert shell(f"{{python}} -m exllama.{command} --help", tmp_path).returncode == 0, command
