"""Days of work in small: nothing that a request takes stays taken."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
import torch

from exllama.errors import ExllamaError
from exllama.generator import Generator
from exllama.generator.job import Job
from tests.generator.fake_model import make

DESCRIPTORS = Path("/proc/self/fd")


def work(generator: Generator, number: int) -> None:
    """An answer, a cancelled job, a refused one, a stream that is left early."""
    generator.generate([f"question {number}", "the same beginning"], 12)
    generator.cancel(generator.enqueue(Job(f"never answered {number}", 5)))
    with pytest.raises(ExllamaError):
        generator.enqueue(Job("x" * 10_000, 5))
    stream = generator.stream(f"left early {number}", 30)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    while generator.active:
        generator.step()


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def test_r12_memory_threads_and_descriptors_stay_flat() -> None:
    """R12: 300 rounds leave as many objects, pages, threads and open files as the first 100."""
    generator, _ = make(pages=16, batch=4)
    assert isinstance(generator, Generator)
    counts = []
    for number in range(400):
        work(generator, number)
        if number in (99, 399):
            generator.check_integrity()
            files = len(os.listdir(DESCRIPTORS)) if DESCRIPTORS.exists() else 0
            counts.append((objects(), threading.active_count(), files, torch.get_num_threads()))
    before, after = counts
    assert after[1:] == before[1:]
    assert after[0] < before[0] + 200  # of a leak of one object a round there would be 300
    generator.close()
