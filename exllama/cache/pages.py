"""The pool of KV pages: who holds which page, and which page already holds which tokens.

Only numbers and hashes live here; the bytes of the pages are in cache/storage.py.

Every page is in exactly one state:
    referenced     some sequences read it (`references > 0`); it may be indexed as well
    findable       no sequence reads it, but the index knows its tokens; reused oldest first when pages run out
    free           nobody knows what is in it

A full page is identified by a keyed blake2b-128 digest of (digest of everything before it, its token ids). The chain
starts at `root(salt)`, so an adapter, an image or a tenant separates what equal tokens would otherwise share. Digests
are never trusted alone: a hit is compared with the stored token ids.

A page that a sequence left incomplete is remembered too, under the digest of what precedes it. It is never shared:
whoever begins with the same tokens copies it (`find_start`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

import numpy as np

from exllama.errors import UsageError
from exllama.ops import PAGE_SIZE

MAX_STARTS = 16  # pages that one search for a common start looks at; keeps admission independent of the pool's size


class _Entry(NamedTuple):
    """What an indexed page holds. digest is None for an incomplete page; tokens are int32 little-endian bytes."""

    digest: bytes | None
    parent: bytes
    tokens: bytes


class PagePool:
    """Reference counts and the prefix index over `num_pages` pages.

    Invariant: every page is referenced, findable or free, and never two of them (`check_integrity`).
    Not thread-safe; the generator's lock guards it.
    """

    def __init__(self, num_pages: int, page_size: int = PAGE_SIZE, key: bytes | None = None) -> None:
        if num_pages < 1:
            raise UsageError(f"a page pool of {num_pages} pages cannot hold a sequence, expected at least 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self.references = [0] * num_pages
        self._key = os.urandom(32) if key is None else key  # unknown outside, so nobody can aim for a collision
        self._free = list(range(num_pages - 1, -1, -1))
        self._findable: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._entries: list[_Entry | None] = [None] * num_pages
        self._index: dict[bytes, int] = {}  # digest -> page
        self._children: dict[bytes, dict[int, None]] = {}  # parent digest -> pages that follow it, oldest first

    @property
    def num_available(self) -> int:
        """Pages that `take` can hand out."""
        return len(self._free) + len(self._findable)

    @property
    def num_free(self) -> int:
        """Pages that hold nothing of use."""
        return len(self._free)

    def root(self, salt: bytes) -> bytes:
        """The digest that a sequence begins with."""
        return blake2b(salt, digest_size=16, key=self._key, person=b"exllama-root").digest()

    def digest(self, parent: bytes, tokens: np.ndarray) -> bytes:
        """The digest of a full page of `tokens` (page_size,) int32 that follows `parent`."""
        return blake2b(parent + tokens.tobytes(), digest_size=16, key=self._key, person=b"exllama-page").digest()

    def find(self, digest: bytes, parent: bytes, tokens: np.ndarray) -> int | None:
        """The page that holds exactly these tokens after `parent`, or None. Takes no reference."""
        page = self._index.get(digest)
        if page is None or self._entries[page] != (digest, parent, tokens.tobytes()):
            return None
        return page

    def find_start(self, parent: bytes, tokens: np.ndarray) -> tuple[int, int]:
        """The page after `parent` that begins with most of `tokens` (n,) int32, and how many: (page, count).

        Looks at the MAX_STARTS newest pages. count is 0 when none begins alike. Takes no reference.
        """
        best, count = 0, 0
        for page in self._newest(parent):
            shared = _common_start(self._tokens(page), tokens)
            if shared > count:
                best, count = page, shared
        return best, count

    def share(self, page: int) -> None:
        """One more reader of a page that `find` or `find_start` named."""
        if self.references[page] == 0:
            del self._findable[page]
        self.references[page] += 1

    def take(self) -> int | None:
        """A page to write to, with one reference: a free one, else the findable one unused for longest, else None."""
        if self._free:
            page = self._free.pop()
        elif self._findable:
            page, _ = self._findable.popitem(last=False)
            self._forget(page)
        else:
            return None
        self.references[page] = 1
        return page

    def release(self, page: int) -> None:
        """One reader less. The last one leaves the page findable if it is indexed, else free."""
        assert self.references[page] > 0, "a page was released more often than it was taken"
        self.references[page] -= 1
        if self.references[page] == 0:
            if self._entries[page] is None:
                self._free.append(page)
            else:
                self._findable[page] = None

    def complete(self, page: int, digest: bytes, parent: bytes, tokens: np.ndarray) -> int:
        """A sequence has filled `page`: index it. Returns the page to use from now on.

        That is another one when an equal page exists: the reference moves there and `page` becomes free.
        """
        existing = self._index.get(digest)
        if existing is None:
            self._remember(page, _Entry(digest, parent, tokens.tobytes()))
            return page
        if existing == page or self._entries[existing] != (digest, parent, tokens.tobytes()):
            return page  # two token lists with one digest: the second stays private
        self.share(existing)
        self.release(page)
        return existing

    def leave(self, page: int, parent: bytes, tokens: np.ndarray) -> None:
        """The only reader of an incomplete page gives it up; it stays findable by its start, `tokens` (n,) int32.

        Pages that this one makes superfluous, or that make this one superfluous, are freed.
        """
        for other in list(self._newest(parent)):
            shared = _common_start(self._tokens(other), tokens)
            if shared == len(tokens):
                self.release(page)
                return
            entry = self._entries[other]
            superfluous = entry is not None and entry.digest is None and shared * tokens.itemsize == len(entry.tokens)
            if superfluous and not self.references[other]:
                del self._findable[other]
                self._forget(other)
                self._free.append(other)
        self._remember(page, _Entry(None, parent, tokens.tobytes()))
        self.release(page)

    def disown(self, page: int) -> None:
        """What a referenced page holds is not to be found again (its contents turned out to be wrong)."""
        if self._entries[page] is not None:
            self._forget(page)

    def check_integrity(self, tables: Iterable[Iterable[int]] | None = None) -> None:
        """Raises AssertionError on a broken invariant. tables: the pages of every live sequence."""
        free, findable = set(self._free), set(self._findable)
        referenced = {page for page, count in enumerate(self.references) if count > 0}
        _check(len(free) == len(self._free), "a page is free twice")
        _check(min(self.references) >= 0, "a reference count is negative")
        _check(not (free & findable or free & referenced or findable & referenced), "a page is in two states")
        _check(free | findable | referenced == set(range(self.num_pages)), "a page is lost")
        indexed = {page for page, entry in enumerate(self._entries) if entry is not None}
        _check(not indexed & free and findable <= indexed, "the index disagrees with the states")
        digests = {entry.digest: page for page, entry in enumerate(self._entries) if entry and entry.digest is not None}
        _check(digests == self._index, "the index disagrees with the pages")
        children = {(entry.parent, page) for page, entry in enumerate(self._entries) if entry}
        _check(
            children == {(parent, page) for parent, pages in self._children.items() for page in pages}
            and all(self._children.values()),
            "the tree of pages disagrees with the pages",
        )
        if tables is not None:
            counts = [0] * self.num_pages
            for table in tables:
                for page in table:
                    counts[page] += 1
            _check(counts == self.references, "reference counts disagree with the page tables")

    def _remember(self, page: int, entry: _Entry) -> None:
        self._entries[page] = entry
        self._children.setdefault(entry.parent, {})[page] = None
        if entry.digest is not None:
            self._index[entry.digest] = page

    def _forget(self, page: int) -> None:
        entry = self._entries[page]
        assert entry is not None, "an unindexed page was findable"
        self._entries[page] = None
        siblings = self._children[entry.parent]
        del siblings[page]
        if not siblings:
            del self._children[entry.parent]
        if entry.digest is not None:
            del self._index[entry.digest]

    def _newest(self, parent: bytes) -> Iterable[int]:
        return islice(reversed(self._children.get(parent, {})), MAX_STARTS)

    def _tokens(self, page: int) -> np.ndarray:
        entry = self._entries[page]
        assert entry is not None, "the tree of pages names an unindexed page"
        return np.frombuffer(entry.tokens, np.int32)


def _common_start(a: np.ndarray, b: np.ndarray) -> int:
    """How many first elements are equal."""
    n = min(len(a), len(b))
    equal = a[:n] == b[:n]
    return n if equal.all() else int(equal.argmin())


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(f"page pool: {message}")
