"""Two processes that find no native module and build it at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

from exllama_ext import build

fcntl = pytest.importorskip("fcntl")


def test_r09_one_builds_and_the_other_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R09: the folder of objects is locked while ninja runs, and free again afterwards."""
    taken: list[bool] = []

    def is_taken(folder: Path) -> bool:
        with (folder / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "run_ninja", lambda folder, *_: taken.append(is_taken(folder)))
    build.build_cpu(tmp_path)
    assert taken == [True]
    assert not is_taken(next((tmp_path / "build" / "cpu").iterdir()))
