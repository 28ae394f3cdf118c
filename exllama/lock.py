"""A lock between processes: held by an open file, given back by the system when its process dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of `path`, a file that is created and stays; calls `waiting` ten times a second until it does."""
    with open(path, "ab") as file:
        while True:
            try:
                _try_lock(file)
                break
            except OSError:
                waiting()
                time.sleep(0.1)
        yield
