"""Fixtures of the kernel tests: a library of test kernels, for both widths of a wave and three orders of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernels.library import ORDERS, SANITIZE, Library, emulated, emulated_kernels


@pytest.fixture(scope="session", params=[32, 64], ids=["wave32", "wave64"])
def warp_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["random"] if SANITIZE else list(ORDERS))
def order(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(warp_size: int, order: str) -> Iterator[Callable[..., Library]]:
    """load("scale") gives the library of tests/kernels/sources/scale.cu, set to the order of threads under test."""
    yield from _libraries(emulated, warp_size, order)


@pytest.fixture
def kernels(warp_size: int, order: str) -> Iterator[Callable[..., Library]]:
    """kernels("rope/rope") gives the library of kernels/rope/rope.cu, and of more files if more are named."""
    yield from _libraries(emulated_kernels, warp_size, order)


def _libraries(build: Callable[..., Path], warp_size: int, order: str) -> Iterator[Callable[..., Library]]:
    loaded: list[Library] = []

    def load_sources(*sources: str) -> Library:
        library = Library(build(*sources, warp_size=warp_size))
        library.configure(order, seed=7, workers=2)
        loaded.append(library)
        return library

    yield load_sources
    for library in loaded:
        library.free()
        library.configure()


@pytest.fixture
def library() -> Iterator[Library]:
    """The project's kernels, for what no order of threads can change: refused arguments, work on the host."""
    library = Library(emulated())
    yield library
    library.free()
