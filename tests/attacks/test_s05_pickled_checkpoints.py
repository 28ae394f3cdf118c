"""Checkpoints that run a program when they are opened."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from exllama.errors import UnsupportedModelError
from exllama.loader.sources import open_checkpoint, resolve


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.ckpt", "data.pkl", "X.PICKLE"])
def test_s05_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """S05: as a file and as the only thing in a folder, with the way out said."""
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    (tmp_path / "config.json").write_text("{}")
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(UnsupportedModelError, match=rf"{name} is a pickled checkpoint.*safetensors or GGUF"):
            open_checkpoint(source)
    assert not (tmp_path / "exploded").exists()


def test_s05_pickles_beside_safetensors_are_not_looked_at(tmp_path: Path) -> None:
    """S05: many repositories hold both."""
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve(tmp_path) == tmp_path
    assert not (tmp_path / "exploded").exists()
