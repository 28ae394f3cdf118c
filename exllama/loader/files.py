"""Files read by position: no shared seek pointer, no mapping, never a byte more than asked for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from exllama.errors import FormatError, SourceError
from exllama.formats.stored import Bytes


class PositionalFile:
    """An open file of a size that was taken at opening. Safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - owned by this object
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            reason = error.strerror or error
            raise SourceError(f"{path} can not be read: {reason}. Check the path and its permissions") from error
        self._lock = threading.Lock()

    def read_into(self, offset: int, target: Bytes) -> None:
        """Fills target (contiguous uint8) with the bytes at offset."""
        view = target.reshape(-1).data
        done = 0
        while done < len(view):
            count = self._read_some(offset + done, view[done:])
            if count == 0:
                found = f"{self.size} bytes at opening, but it ends at {offset + done} now"
                raise FormatError(self.path, "file size", found, f"at least {offset + len(view)} bytes")
            done += count

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at offset; the caller has checked them against `size`."""
        target = np.empty(count, np.uint8)
        self.read_into(offset, target)
        return target.tobytes()

    def close(self) -> None:
        self._file.close()

    def _read_some(self, offset: int, view: memoryview) -> int:
        if self._file.closed:
            raise SourceError(f"{self.path} was closed; open the checkpoint again before reading from it")
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self._file.fileno(), [view], offset)
            with self._lock:  # Windows has no positional read
                self._file.seek(offset)
                return self._file.readinto(view) or 0
        except OSError as error:
            raise SourceError(f"reading {self.path} failed: {error.strerror or error}") from error
