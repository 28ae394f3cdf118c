"""What the tests of models share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exllama.engine.model import Model
from tests.models.toys import DEVICES, save, toy_config, toy_model


@pytest.fixture(autouse=True, scope="package")
def one_torch_thread() -> Iterator[None]:
    """Toy tensors are too small to share out: with one thread the tests take an eighth of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy llama in fp32, 1024 tokens of context."""
    return save(toy_model(toy_config("llama")), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="package")
def llama(llama_folder: Path) -> dict[str, Model]:
    """It, opened on every device."""
    return {device: Model.from_pretrained(llama_folder, device=device) for device in DEVICES}
