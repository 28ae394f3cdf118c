"""Files that end too early, before and while they are read; a module that is only half linked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from exllama import formats
from exllama.errors import FormatError
from exllama.loader.sources import open_checkpoint
from exllama_ext import build
from tests.formats.limits import refusal
from tests.formats.test_gguf_files import write_model
from tests.formats.test_safetensors_files import sharded


@pytest.mark.parametrize("keep", [0, 7, 30, -1, -64])
def test_r08_a_truncated_shard_is_refused(tmp_path: Path, keep: int) -> None:
    """R08: at any place, and by name, before a tensor is read."""
    model = sharded(tmp_path / "model", [{"a": torch.zeros(64, 8)}, {"b": torch.zeros(64, 8)}])
    shard = model / "model-00002-of-00002.safetensors"
    os.truncate(shard, keep if keep >= 0 else shard.stat().st_size + keep)
    error = refusal(lambda: open_checkpoint(model), model)
    assert shard.name in str(error)


def test_r08_a_truncated_part_of_a_gguf_file_is_refused(tmp_path: Path) -> None:
    """R08: the part is named."""
    write_model(tmp_path / "model.gguf", parts=3)
    first, second = tmp_path / "model-00001-of-00003.gguf", tmp_path / "model-00002-of-00003.gguf"
    open_checkpoint(first).close()
    os.truncate(second, second.stat().st_size - 33)  # more than what aligns the end
    assert second.name in str(refusal(lambda: open_checkpoint(first), first))


def test_r08_a_file_that_is_cut_while_it_is_loaded(tmp_path: Path) -> None:
    """R08: the load ends with an error, not with zeros."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a.weight": torch.ones(512, 512)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        os.truncate(tmp_path / "model.safetensors", 4096)
        with pytest.raises(FormatError, match="it ends at 4096 now"):
            formats.load_weight(checkpoint, "a", (512, 512), "cpu")


def test_r08_a_module_is_put_in_place_whole(tmp_path: Path) -> None:
    """R08: a link that is killed leaves the former module."""
    build.write_ninja(tmp_path, tmp_path / "_C.so", [])
    link = next(line for line in (tmp_path / "build.ninja").read_text().splitlines() if "-shared" in line)
    assert link.endswith("-o $out.partial -pthread && mv -f $out.partial $out")
