from __future__ import annotations

from pathlib import Path

import pytest

from exllama.loader.sources import resolve


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The file of the default model, fetched once for all tests."""
    return resolve("default")
