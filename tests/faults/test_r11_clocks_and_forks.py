"""Clocks that jump, and processes that fork after the model was loaded."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.unit.tree import ROOT, product

FORK = """
import os, sys
import numpy as np
from exllama import ops
from exllama.errors import DeviceError
from tests.ops.blocks import dense

plan = ops.CpuPlan(4, 2)
x, table = plan.buffer(32), dense(np.ones((8, 32), np.float32))
plan.embed(table, x)
plan.logits(x, table)
one = np.zeros(1, np.int32)
plan.run(one, one, one, one[None], one)
child = os.fork()
if child == 0:
    try:
        plan.run(one, one, one, one[None], one)
    except DeviceError as error:
        print(error, flush=True)
    sys.exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
print(plan.run(one, one, one, one[None], one)[0, 0].item())
"""


def test_r11_no_duration_is_taken_from_the_wall_clock() -> None:
    """R11: time.time may jump; limits, speeds and deadlines use perf_counter or monotonic."""
    for source in product():
        for node in ast.walk(source.syntax):
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time"), source.path


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_r11_a_forked_process_is_told_and_does_not_hang() -> None:
    """R11: threads are not inherited, so the child cannot compute; the parent goes on."""
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said, value = done.stdout.splitlines()
    assert "forked from it, cannot use it: load it after the fork" in said
    assert value == "32.0"
