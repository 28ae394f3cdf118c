"""One conversation's pages in one file, to be continued in another process: the full pages, first to last."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import numpy as np

from exllama.cache.page_file import Header, append_record, read_header, read_record, scan_records, write_header
from exllama.cache.pages import PagePool
from exllama.cache.prefix import Prefix
from exllama.cache.spill import PageBytes
from exllama.errors import FormatError, SourceError


def save_chain(path: Path, header: Header, pool: PagePool, cache: PageBytes, start: Prefix, tokens: np.ndarray) -> int:
    """Writes the full pages that hold the first of `tokens` (n,) int32 after `start`; returns how many these are.

    An existing file is replaced once the new one is complete. Raises SourceError when it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    prefix, saved, size = start, 0, pool.page_size
    try:
        with open(draft, "xb") as file:
            write_header(file, header)
            while len(tokens) >= saved + size:
                prefix = pool.child(prefix, tokens[saved : saved + size])
                page = pool.find(prefix)
                if page is None:
                    break
                append_record(file, prefix, cache.read_page(page))
                saved += size
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SourceError(f"pages cannot be written to {path}: {error.strerror or error}") from error
    return saved


def load_chain(path: Path, header: Header, pool: PagePool, cache: PageBytes, start: Prefix) -> int:
    """Makes the pages of a file findable after `start`; returns how many tokens they hold, fewer if pages run out.

    Raises SourceError when it cannot be read, FormatError when it is damaged or of another model, cache or tenant;
    nothing of such a file is found afterwards.
    """
    taken: list[int] = []
    prefix, loaded = start, 0
    try:
        with open(path, "rb") as file:
            read_header(file, path, header)
            for record in scan_records(file, path, cache.page_nbytes, file.tell()):
                tokens, images, data = read_record(file, path, record)
                if record.parent != prefix.address or len(tokens) != 4 * pool.page_size:
                    raise FormatError(path, f"record at byte {record.offset}", "another page", "the one that follows")
                prefix = pool.child(prefix, np.frombuffer(tokens, "<i4"), images)
                page = _page_for(pool, cache, prefix, data)
                if page is None:
                    break
                taken.append(page)
                loaded += pool.page_size
    except OSError as error:
        raise SourceError(f"pages cannot be read from {path}: {error.strerror or error}") from error
    except FormatError:
        for page in taken:
            pool.disown(page)
        raise
    finally:
        for page in reversed(taken):  # so that the last one is the first to be forgotten
            pool.release(page)
    return loaded


def _page_for(pool: PagePool, cache: PageBytes, prefix: Prefix, data: np.ndarray) -> int | None:
    """A page with these contents and one more reader; None when there is no page left."""
    page = pool.find(prefix)
    if page is not None:
        pool.share(page)
        return page
    page = pool.take()
    if page is None:
        return None
    cache.write_page(page, data)
    return pool.complete(page, prefix)
