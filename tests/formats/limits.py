"""What must hold for every hostile file: a typed error that says where, in under a second, within 64 MiB."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exllama.errors import ExllamaError, FormatError

SECONDS = 1.0
BYTES = 64 << 20


def refusal(work: Callable[[], Any], path: Path) -> ExllamaError:
    """The error of `work`, after checking what holds for every one of them."""
    began = time.process_time()  # of this process: a busy machine makes no file slow
    try:
        work()
    except ExllamaError as error:
        caught = error
    else:
        raise AssertionError("the file was accepted")
    assert time.process_time() - began < SECONDS
    if isinstance(caught, FormatError):
        assert Path(caught.file).is_relative_to(path.parent), caught.file
        assert caught.field
        assert str(caught.found) in str(caught) or len(str(caught.found)) > 100 or repr(caught.found) in str(caught)
    return caught


def measured_refusal(work: Callable[[], Any], path: Path) -> ExllamaError:
    """refusal(), with the memory counted; slower, so for files that are made to fill it."""
    tracemalloc.start()
    try:
        caught = refusal(work, path)
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
    return caught
