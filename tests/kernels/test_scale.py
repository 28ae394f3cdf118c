"""The smallest kernel, as an example of a kernel test: results, guards, refused arguments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.kernels.library import KernelError, Library


@pytest.mark.parametrize("n", [1, 127, 128, 129, 1000])
def test_values(load: Callable[..., Library], n: int) -> None:
    library = load("scale")
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    out = library.empty(n)
    library.call("test_scale", library.put(x), out, 2.5, n)
    assert np.array_equal(library.get(out), np.float32(2.5) * x)


def test_refused_arguments_are_named(load: Callable[..., Library]) -> None:
    library = load("scale")
    x = library.put(np.ones(8, np.float32))
    with pytest.raises(KernelError) as refused:
        library.call("test_scale", x, x, 1.0, 0)
    assert (refused.value.status, refused.value.argument) == ("bad_shape", "n")
    with pytest.raises(KernelError) as refused:
        library.call("test_scale", x, None, 1.0, 8)
    assert (refused.value.status, refused.value.argument) == ("bad_argument", "out")
    x.pointer += 2
    with pytest.raises(KernelError) as refused:
        library.call("test_scale", x, x, 1.0, 7)
    x.pointer -= 2
    assert (refused.value.status, refused.value.argument) == ("misaligned", "x")
