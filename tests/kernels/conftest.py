"""Fixtures of the kernel tests: a library of test kernels, for both widths of a wave and three orders of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.kernels.library import ORDERS, Library, emulated


@pytest.fixture(scope="session", params=[32, 64], ids=["wave32", "wave64"])
def warp_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=list(ORDERS))
def order(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(warp_size: int, order: str) -> Iterator[Callable[..., Library]]:
    """load("scale") gives the library of tests/kernels/sources/scale.cu, set to the order of threads under test."""
    loaded: list[Library] = []

    def load_sources(*sources: str) -> Library:
        library = Library(emulated(*sources, warp_size=warp_size))
        library.configure(order, seed=7, workers=2)
        loaded.append(library)
        return library

    yield load_sources
    for library in loaded:
        library.free()
        library.configure()
