"""The pool of KV pages: who holds which page, and which page already holds which tokens.

Only numbers and hashes live here; the bytes of the pages are in cache/storage.py.

Every page is in exactly one state:
    referenced     some sequences read it (`references > 0`); it may be indexed as well
    findable       no sequence reads it, but the index knows its tokens; reused oldest first when pages run out
    free           nobody knows what is in it

A full page is identified by its prefix (cache/prefix.py): a keyed blake2b-128 digest of (digest of everything before
it, its token ids, the images that begin in it). The chain starts at `root(salt, adapter)`, so an adapter, an image or a
tenant separates what equal tokens would otherwise share. Digests are never trusted alone: a hit is compared token by
token, back to the root.

A page that a sequence left incomplete is remembered too, under the digest of what precedes it. It is never shared:
whoever begins with the same tokens copies it (`find_start`).

What is forgotten can go to slower memory and come back (`spill`, cache/spill.py).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from typing import Protocol

import numpy as np

from exllama.cache.prefix import Images, Prefix, root_identity
from exllama.errors import UsageError
from exllama.ops import PAGE_SIZE

MAX_STARTS = 16  # pages that one search for a common start looks at; keeps admission independent of the pool's size


class PageKeeper(Protocol):
    """What is used of cache.spill.Spill: it moves the bytes of full pages out of the pool's memory and back."""

    def holds(self, prefix: Prefix) -> bool: ...
    def save(self, page: int, prefix: Prefix) -> None: ...
    def load(self, prefix: Prefix, page: int) -> bool: ...
    def drop(self, prefix: Prefix) -> None: ...
    def freed(self, page: int) -> None: ...
    def check_integrity(self) -> None: ...
    def close(self) -> None: ...


class PagePool:
    """Reference counts and the prefix index over `num_pages` pages.

    Invariant: every page is referenced, findable or free, and never two of them (`check_integrity`).
    Not thread-safe; the generator's lock guards it.
    """

    def __init__(
        self, num_pages: int, page_size: int = PAGE_SIZE, key: bytes | None = None, spill: PageKeeper | None = None
    ) -> None:
        if num_pages < 1:
            raise UsageError(f"a page pool of {num_pages} pages cannot hold a sequence, expected at least 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self.references = [0] * num_pages
        self._key = os.urandom(32) if key is None else key  # unknown outside, so nobody can aim for a collision
        self._free = list(range(num_pages - 1, -1, -1))
        self._findable: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._entries: list[Prefix | None] = [None] * num_pages
        self._index: dict[bytes, int] = {}  # digest -> page
        self._children: dict[bytes, dict[int, None]] = {}  # parent digest -> pages that follow it, oldest first
        self._spill = spill

    @property
    def num_available(self) -> int:
        """Pages that `take` can hand out."""
        return len(self._free) + len(self._findable)

    @property
    def num_free(self) -> int:
        """Pages that hold nothing of use."""
        return len(self._free)

    def root(self, salt: bytes, adapter: bytes = b"") -> Prefix:
        """What a sequence begins with. salt: the tenant; adapter: what else changes keys and values."""
        identity = root_identity(salt, adapter)
        return Prefix(self.digest(b"", identity), None, identity)

    def child(self, parent: Prefix, tokens: np.ndarray, images: Images = ()) -> Prefix:
        """The prefix of a full page of `tokens` (page_size,) int32 that follows `parent`."""
        content = np.ascontiguousarray(tokens, "<i4").tobytes()
        prefix = Prefix(b"", parent, content, images)
        prefix.digest = self.digest(parent.digest, prefix.content)
        return prefix

    def digest(self, parent: bytes, content: bytes) -> bytes:
        """16 bytes for `content` after everything that has the digest `parent`."""
        return blake2b(parent + content, digest_size=16, key=self._key, person=b"exllama-page").digest()

    def find(self, prefix: Prefix) -> int | None:
        """The page that holds exactly these tokens after exactly those before, or None. Takes no reference."""
        page = self._index.get(prefix.digest)
        return page if page is not None and self._entry(page).same(prefix) else None

    def find_start(self, parent: Prefix, tokens: np.ndarray, images: Images = ()) -> tuple[int, int]:
        """The page after `parent` that begins with most of `tokens` (n,) int32, and how many: (page, count).

        Looks at the MAX_STARTS newest pages. count is 0 when none begins alike. Takes no reference.
        """
        best, count = 0, 0
        for page in self._newest(parent):
            shared = self._entry(page).common_start(tokens, images)
            if shared > count:
                best, count = page, shared
        return best, count

    def entry(self, page: int) -> Prefix | None:
        """What the index knows of a page."""
        return self._entries[page]

    def share(self, page: int) -> None:
        """One more reader of a page that `find` or `find_start` named."""
        if self.references[page] == 0:
            del self._findable[page]
        self.references[page] += 1

    def restore(self, prefix: Prefix) -> int | None:
        """A page with the contents that were spilled, with one reference; None where there are none, or no page."""
        if self._spill is None or not self._spill.holds(prefix):
            return None
        page = self.take()
        if page is None:
            return None
        if not self._spill.load(prefix, page):
            self.release(page)
            return None
        if prefix.digest not in self._index:  # else another chain with the same digest: it stays private
            self._remember(page, prefix)
        return page

    def take(self) -> int | None:
        """A page to write to, with one reference: a free one, else the findable one unused for longest, else None."""
        if self._free:
            page = self._free.pop()
        elif self._findable:
            page, _ = self._findable.popitem(last=False)
            self._save(page)
            self._forget(page)
            self._clear(page)
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
                self._set_free(page)
            else:
                self._findable[page] = None

    def complete(self, page: int, prefix: Prefix) -> int:
        """A sequence has filled `page`: index it. Returns the page to use from now on.

        That is another one when an equal page exists: the reference moves there and `page` becomes free.
        """
        existing = self._index.get(prefix.digest)
        if existing is None:
            self._remember(page, prefix)
            return page
        if existing == page or not self._entry(existing).same(prefix):
            return page  # two token lists with one digest: the second stays private
        self.share(existing)
        self.release(page)
        return existing

    def leave(self, page: int, parent: Prefix, tokens: np.ndarray, images: Images = ()) -> None:
        """The only reader of an incomplete page gives it up; it stays findable by its start, `tokens` (n,) int32.

        Pages that this one makes superfluous, or that make this one superfluous, are freed.
        """
        for other in list(self._newest(parent)):
            entry = self._entry(other)
            shared = entry.common_start(tokens, images)
            if shared == len(tokens):
                self.release(page)
                return
            if not entry.digest and shared == len(entry.ids) and not self.references[other]:
                del self._findable[other]
                self._forget(other)
                self._set_free(other)
        self._remember(page, Prefix(b"", parent, np.ascontiguousarray(tokens, "<i4").tobytes(), images))
        self.release(page)

    def disown(self, page: int) -> None:
        """What a referenced page holds is not to be found again (its contents turned out to be wrong)."""
        entry = self._entries[page]
        if entry is not None:
            self._forget(page)
            if self._spill is not None:
                self._spill.drop(entry)

    def close(self) -> None:
        """Spills every page that is complete, the deepest of a sequence first, for whoever comes next."""
        if self._spill is not None:
            for page in self._findable:
                self._save(page)
            self._spill.close()
            self._spill = None

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
        digests = {entry.digest: page for page, entry in enumerate(self._entries) if entry and entry.digest}
        _check(digests == self._index, "the index disagrees with the pages")
        lengths = {len(entry.ids) for entry in self._entries if entry and entry.digest}
        _check(lengths <= {self.page_size}, "a complete page has another number of tokens")
        children = {(entry.parent.digest, page) for page, entry in enumerate(self._entries) if entry and entry.parent}
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
        if self._spill is not None:
            self._spill.check_integrity()

    def _remember(self, page: int, prefix: Prefix) -> None:
        assert prefix.parent is not None, "a root was given a page"
        self._entries[page] = prefix
        self._children.setdefault(prefix.parent.digest, {})[page] = None
        if prefix.digest:
            self._index[prefix.digest] = page

    def _forget(self, page: int) -> None:
        entry = self._entry(page)
        assert entry.parent is not None, "a root had a page"
        self._entries[page] = None
        siblings = self._children[entry.parent.digest]
        del siblings[page]
        if not siblings:
            del self._children[entry.parent.digest]
        if entry.digest:
            del self._index[entry.digest]

    def _save(self, page: int) -> None:
        entry = self._entry(page)
        if self._spill is not None and entry.digest and not self._spill.holds(entry):
            self._spill.save(page, entry)

    def _set_free(self, page: int) -> None:
        self._clear(page)
        self._free.append(page)

    def _clear(self, page: int) -> None:
        if self._spill is not None:
            self._spill.freed(page)

    def _newest(self, parent: Prefix) -> Iterable[int]:
        """Pages that follow `parent`, newest first, out of the MAX_STARTS newest."""
        for page in islice(reversed(self._children.get(parent.digest, {})), MAX_STARTS):
            before = self._entry(page).parent
            if before is not None and before.same(parent):
                yield page

    def _entry(self, page: int) -> Prefix:
        entry = self._entries[page]
        assert entry is not None, "the index names a page that it does not know"
        return entry


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(f"page pool: {message}")
