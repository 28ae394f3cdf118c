"""Pages in a folder: they survive the process, take a bounded number of bytes, and several processes may share them.

Every process appends to files of its own (cache/page_file.py) and reads those of all. Whoever appends holds the lock of
the folder, looks for what others have appended, and deletes the oldest files until the new page fits. A file that
somebody else deleted is noticed when it is opened; its pages are then computed anew.

Pages are written by a thread, so that a step waits for memory to be copied but not for a disk; at most _QUEUED wait.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exllama.cache.page_file import (
    SUFFIX,
    Header,
    Record,
    append_record,
    is_page_file,
    read_header,
    read_record,
    scan_records,
    write_header,
)
from exllama.cache.prefix import Prefix
from exllama.errors import FormatError, SourceError, UsageError
from exllama.lock import exclusive

_FILES = 8  # that max_bytes is divided over: the oldest of them is what is deleted at a time
_QUEUED = 8  # pages that wait to be written
_log = logging.getLogger(__name__)


class DiskTier:
    """A Tier (cache/spill.py) over `folder`, which is made if need be and readable for its owner alone.

    header: names the model and the cache; files with another one are left alone. page_nbytes: of K and V in all layers.
    Raises UsageError when max_bytes does not hold a page, SourceError when the folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int, header: Header, page_nbytes: int) -> None:
        if max_bytes < 2 * page_nbytes:
            raise UsageError(f"{max_bytes} bytes of spilled pages hold not even two of {page_nbytes} bytes: allow more")
        self._folder, self._max_bytes, self._header, self._page_nbytes = folder, max_bytes, header, page_nbytes
        self._index: dict[bytes, tuple[Path, Record]] = {}  # by address
        self._pending: dict[bytes, tuple[Prefix, NDArray[np.uint8]]] = {}  # not written yet
        self._scanned: dict[Path, int] = {}  # bytes of every file that are in the index
        self._guard = threading.Lock()  # of the three above
        self._queue: queue.Queue[Prefix | None] = queue.Queue(_QUEUED)
        self._own: Path | None = None  # the file that this process appends to
        self._strange: set[Path] = set()
        self._broken = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock():
                self._look()
        except OSError as error:
            raise SourceError(f"pages cannot be kept in {folder}: {error.strerror or error}") from error
        self._writer = threading.Thread(target=self._write_all, name="exllama-spill", daemon=True)
        self._writer.start()

    def holds(self, prefix: Prefix) -> bool:
        """See Tier."""
        with self._guard:
            return prefix.address in self._index or prefix.address in self._pending

    def load(self, prefix: Prefix) -> NDArray[np.uint8] | None:
        """See Tier. A page that is damaged is dropped with a warning."""
        with self._guard:
            pending, place = self._pending.get(prefix.address), self._index.get(prefix.address)
        if pending is not None:
            return pending[1] if pending[0].same(prefix) else None
        if place is None:
            return None
        path, record = place
        try:
            with open(path, "rb") as file:
                tokens, images, data = read_record(file, path, record)
        except FileNotFoundError:  # another process needed the room
            self.drop(prefix)
            return None
        except (FormatError, OSError) as error:
            _log.warning("a page of the spilled cache is dropped: %s", error)
            self.drop(prefix)
            return None
        equal = (tokens, images) == (prefix.tokens, prefix.images)
        return data if equal and prefix.parent and prefix.parent.address == record.parent else None

    def store(self, prefix: Prefix, data: NDArray[np.uint8]) -> None:
        """See Tier. Waits only when _QUEUED pages wait already."""
        if self._broken or self.holds(prefix):
            return
        with self._guard:
            self._pending[prefix.address] = (prefix, data)
        self._queue.put(prefix)

    def drop(self, prefix: Prefix) -> None:
        """See Tier. The bytes stay in their file until that is deleted."""
        with self._guard:
            self._index.pop(prefix.address, None)
            self._pending.pop(prefix.address, None)

    def flush(self) -> None:
        """Waits until everything is written."""
        self._queue.join()

    def check_integrity(self) -> None:
        """Raises AssertionError when the index and the files that it was made from disagree."""
        with self._guard:
            if any(record.end > self._scanned.get(path, 0) for path, record in self._index.values()):
                raise AssertionError("page pool: the disk tier names a page beyond the end of its file")

    def close(self) -> None:
        """Writes what waits, and ends the thread. Harmless when called twice."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join()

    def _write_all(self) -> None:
        while (prefix := self._queue.get()) is not None:
            try:
                self._write(prefix)
            except OSError as error:
                self._broken = True
                _log.warning("no more pages are kept in %s: %s", self._folder, error.strerror or error)
            finally:
                with self._guard:
                    self._pending.pop(prefix.address, None)
                self._queue.task_done()
        self._queue.task_done()

    def _write(self, prefix: Prefix) -> None:
        with self._guard:
            waiting = self._pending.get(prefix.address)
        if waiting is None or self._broken:
            return
        with self._lock():
            self._look()
            if prefix.address in self._index or not self._make_room():
                return
            path = self._file_to_append()
            with open(path, "r+b") as file:
                record = append_record(file, *waiting)
            with self._guard:
                self._scanned[path] = record.end
                if prefix.address in self._pending:  # else it was dropped meanwhile
                    self._index[prefix.address] = (path, record)

    def _file_to_append(self) -> Path:
        """A file of this process that is there and not too long, if need be a new one."""
        limit = max(self._max_bytes // _FILES, self._page_nbytes)
        if self._own is not None and self._own in self._scanned and self._scanned[self._own] < limit:
            return self._own
        self._own = self._folder / f"{secrets.token_hex(8)}{SUFFIX}"
        with open(self._own, "xb") as file:
            write_header(file, self._header)
            size = file.tell()
        with self._guard:
            self._scanned[self._own] = size
        return self._own

    def _make_room(self) -> bool:
        """Deletes the oldest files until one more page fits; False when that cannot be."""
        files = sorted(self._files(), key=lambda entry: entry[1].st_mtime_ns)
        total = sum(status.st_size for _, status in files)
        wanted = self._page_nbytes + (1 << 16)  # content, header and checksums
        for path, status in files:
            if total + wanted <= self._max_bytes:
                return True
            with suppress(PermissionError):  # in use on Windows
                path.unlink()
                self._forget(path)
                total -= status.st_size
        return total + wanted <= self._max_bytes

    def _look(self) -> None:
        """Adds what has been appended to the files in the folder, forgets files that are gone. Needs the lock."""
        present = {path: status.st_size for path, status in self._files()}
        for path in [path for path in self._scanned if path not in present]:
            self._forget(path)
        for path, size in present.items():
            if size > self._scanned.get(path, 0):
                self._read_file(path, size)

    def _read_file(self, path: Path, size: int) -> None:
        with self._guard:
            begin, self._scanned[path] = self._scanned.get(path, 0), size  # also of a bad file: nobody warns twice
        try:
            with open(path, "rb") as file:
                if begin == 0:
                    read_header(file, path, self._header)
                    begin = file.tell()
                for record in scan_records(file, path, self._page_nbytes, begin):
                    with self._guard:
                        self._index[record.address] = (path, record)
        except FormatError as error:
            _log.warning("what follows in a file of the spilled cache is dropped: %s", error)
        except OSError as error:
            _log.warning("a file of the spilled cache is left alone: %s: %s", path, error.strerror or error)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The files of pages in the folder, whoever wrote them. Others are left alone."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                if path in self._scanned or is_page_file(path):
                    yield path, status
                elif path not in self._strange:
                    self._strange.add(path)
                    _log.warning("%s is no file of cache pages: it is left alone", path)

    def _forget(self, path: Path) -> None:
        with self._guard:
            self._scanned.pop(path, None)
            self._index = {address: place for address, place in self._index.items() if place[0] != path}

    def _lock(self) -> AbstractContextManager[None]:
        return exclusive(self._folder / "lock", lambda: None)
