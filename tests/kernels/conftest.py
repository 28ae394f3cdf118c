"""Fixtures of the kernel tests: a library of test kernels, for both widths of a wave and three orders of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernels.library import BACKEND, ORDERS, SANITIZE, Library, kernels_library, sources_library

WAVES = [32, 64] if BACKEND == "emu" else [32]
# Tests of the emulator and of builds, which a GPU has no part in.
NOT_ON_A_GPU = (
    "test_attention_faults", "test_build", "test_compile", "test_defects", "test_gemm_faults", "test_inner_loops",
    "test_runtime", "test_sanitizers",
)  # fmt: skip


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if BACKEND != "emu" and collection_path.stem in NOT_ON_A_GPU else None


@pytest.fixture(scope="session", params=WAVES, ids=[f"wave{size}" for size in WAVES])
def warp_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["random"] if SANITIZE or BACKEND != "emu" else list(ORDERS))
def order(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(warp_size: int, order: str) -> Iterator[Callable[..., Library]]:
    """load("scale") gives the library of tests/kernels/sources/scale.cu, set to the order of threads under test."""
    yield from _libraries(sources_library, warp_size, order)


@pytest.fixture
def kernels(warp_size: int, order: str) -> Iterator[Callable[..., Library]]:
    """kernels("rope/rope") gives the library of kernels/rope/rope.cu, and of more files if more are named."""
    yield from _libraries(kernels_library, warp_size, order)


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
    library = Library(sources_library())
    yield library
    library.free()
