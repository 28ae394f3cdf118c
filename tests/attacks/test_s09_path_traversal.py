"""Names inside of files and requests that would lead out of their folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exllama.errors import FormatError, SourceError
from exllama.loader.safetensors_checkpoint import INDEX
from exllama.loader.sources import choose_hub_files, open_checkpoint, resolve
from tests.formats.safetensors_writer import encode

OUTSIDE = ["../secret.safetensors", "/secret.safetensors", "a/../../secret.safetensors", "..\\secret.safetensors",
           "C:\\secret.safetensors", "a\x00.safetensors", "\u2024\u2024/secret.safetensors", "file:secret.safetensors",
           "~/secret.safetensors", ".." * 50 + "/x.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_s09_shards_lie_in_the_folder(tmp_path: Path, name: str) -> None:
    """S09: an index that names a file elsewhere, even one that exists."""
    content = encode({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    (tmp_path / "secret.safetensors").write_bytes(content)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "own.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "own.safetensors"}}))
    open_checkpoint(folder).close()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(FormatError, match=r"weight_map\.w.*a \.safetensors file of this folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["hf:../x", "hf:a/../b", "hf:a/b@../../c", "hf:a/b/c", "hf:/etc/passwd", "hf:a\\b/c",
                                  "hf:a/b@-x", "hf:a/b\n", "hf:.a/b"])  # fmt: skip
def test_s09_hub_names_are_names(name: str) -> None:
    """S09: refused before anything is asked of the network."""
    with pytest.raises(SourceError, match="is no model of the hub"):
        resolve(name)


def test_s09_only_the_top_level_of_a_repository_is_fetched() -> None:
    """S09: names with folders in them are none of a model's files."""
    names = [
        "model.safetensors",
        "config.json",
        "../config.json",
        "a/../../x.safetensors",
        "/etc/x.json",
        "sub/t.jinja",
    ]
    assert choose_hub_files("hf:a/b", names) == ["config.json", "model.safetensors"]
