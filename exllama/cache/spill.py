"""Where full pages go when the cache forgets them, and how they come back: memory of the host first, then a folder.

A `Tier` keeps the bytes of pages by their prefix and gives them back bit for bit, or not at all. `Spill` stands between
the page pool and the tiers: it knows the cache that the bytes belong to.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exllama.cache.prefix import Prefix
from exllama.errors import UsageError

Bytes = NDArray[np.uint8]


class PageBytes(Protocol):
    """What is used of cache.storage.KVCache."""

    num_pages: int

    @property
    def page_nbytes(self) -> int: ...
    def read_page(self, page: int) -> Bytes: ...
    def write_page(self, page: int, data: Bytes) -> None: ...
    def poison_page(self, page: int) -> None: ...


class Tier(Protocol):
    """Slower memory for pages. `load` may answer None for a page that it held; whoever asks then computes it anew."""

    def holds(self, prefix: Prefix) -> bool: ...
    def load(self, prefix: Prefix) -> Bytes | None: ...
    def store(self, prefix: Prefix, data: Bytes) -> None: ...
    def drop(self, prefix: Prefix) -> None: ...
    def check_integrity(self) -> None: ...
    def close(self) -> None: ...


class Spill:
    """Moves pages between a cache and a tier; without a tier it only poisons.

    poison: fill pages that hold nothing any more with NaN, so that whoever reads them is noticed (EXLLAMA_DEBUG_PAGES).
    """

    def __init__(self, cache: PageBytes, tier: Tier | None = None, poison: bool = False) -> None:
        self._cache, self._tier, self._poison = cache, tier, poison
        self.saved = self.loaded = 0  # pages
        for page in range(cache.num_pages):
            self.freed(page)

    def holds(self, prefix: Prefix) -> bool:
        """Whether `load` is worth a try."""
        return self._tier is not None and self._tier.holds(prefix)

    def save(self, page: int, prefix: Prefix) -> None:
        """Keeps what `page` holds."""
        if self._tier is not None:
            self._tier.store(prefix, self._cache.read_page(page))
            self.saved += 1

    def load(self, prefix: Prefix, page: int) -> bool:
        """Fills `page` with what was saved; False when it is not there any more."""
        data = None if self._tier is None else self._tier.load(prefix)
        if data is None:
            return False
        self._cache.write_page(page, data)
        self.loaded += 1
        return True

    def drop(self, prefix: Prefix) -> None:
        """What was saved turned out to be wrong."""
        if self._tier is not None:
            self._tier.drop(prefix)

    def freed(self, page: int) -> None:
        """Nothing will be read from `page` before it is written to."""
        if self._poison:
            self._cache.poison_page(page)

    def check_integrity(self) -> None:
        """Raises AssertionError on a broken invariant of a tier."""
        if self._tier is not None:
            self._tier.check_integrity()

    def close(self) -> None:
        """Ends the tiers; what should survive has been saved."""
        if self._tier is not None:
            self._tier.close()


class MemoryTier:
    """Up to max_bytes of pages in the memory of the host, for caches that live on an accelerator.

    The least recently stored page makes room, and goes to `below` if there is one. A page that is loaded leaves: it is
    in the cache then, and comes back when the cache forgets it.
    """

    def __init__(self, max_bytes: int, below: Tier | None = None) -> None:
        if max_bytes < 1:
            raise UsageError(f"max_bytes is {max_bytes}, expected at least 1")
        self._max_bytes, self._below = max_bytes, below
        self._pages: OrderedDict[bytes, tuple[Prefix, Bytes]] = OrderedDict()  # by address, the oldest first
        self.nbytes = 0

    def holds(self, prefix: Prefix) -> bool:
        """See Tier."""
        return self._find(prefix) is not None or (self._below is not None and self._below.holds(prefix))

    def load(self, prefix: Prefix) -> Bytes | None:
        """See Tier."""
        data = self._find(prefix)
        if data is None:
            return self._below.load(prefix) if self._below else None
        self._remove(prefix)
        return data

    def store(self, prefix: Prefix, data: Bytes) -> None:
        """See Tier."""
        self._remove(prefix)
        self._pages[prefix.address] = (prefix, data)
        self.nbytes += data.nbytes
        while self.nbytes > self._max_bytes:
            _, (oldest, page) = self._pages.popitem(last=False)
            self.nbytes -= page.nbytes
            self._sink(oldest, page)

    def drop(self, prefix: Prefix) -> None:
        """See Tier."""
        self._remove(prefix)
        if self._below:
            self._below.drop(prefix)

    def check_integrity(self) -> None:
        """Raises AssertionError when the count of bytes is wrong or too high."""
        if not sum(data.nbytes for _, data in self._pages.values()) == self.nbytes <= self._max_bytes:
            raise AssertionError("page pool: the memory tier counts its bytes wrong")
        if self._below:
            self._below.check_integrity()

    def close(self) -> None:
        """Hands everything down."""
        for prefix, data in self._pages.values():
            self._sink(prefix, data)
        self._pages.clear()
        self.nbytes = 0
        if self._below:
            self._below.close()

    def _sink(self, prefix: Prefix, data: Bytes) -> None:
        if self._below and not self._below.holds(prefix):
            self._below.store(prefix, data)

    def _find(self, prefix: Prefix) -> Bytes | None:
        found = self._pages.get(prefix.address)
        return found[1] if found is not None and found[0].same(prefix) else None

    def _remove(self, prefix: Prefix) -> None:
        if self._find(prefix) is not None:
            _, data = self._pages.pop(prefix.address)
            self.nbytes -= data.nbytes
