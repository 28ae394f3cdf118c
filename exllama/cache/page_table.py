"""The pages of one sequence, in the order of its positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exllama.cache.pages import PagePool

MIN_COPIED_TOKENS = 16  # below that, computing the tokens anew costs no more than copying their page


class PageTable:
    """Pages that hold positions page_size * i ... of one sequence, grown as the sequence grows.

    `tokens` is always the whole sequence so far, (n,) int32; it only ever gets longer. `computed` says how many of its
    first tokens have their keys and values in the pages. `row` (P,) int32 mirrors the pages for the batch.
    """

    def __init__(self, pool: PagePool, salt: bytes = b"") -> None:
        self._pool = pool
        self._chain = [pool.root(salt)]  # chain[i]: digest of all tokens before page i; grows ahead of the pages
        self._sealed = 0  # pages that are complete and known to the index
        self.pages: list[int] = []
        self.row: np.ndarray | None = None

    @property
    def capacity(self) -> int:
        """Tokens that the pages can hold."""
        return len(self.pages) * self._pool.page_size

    def place(self, row: np.ndarray) -> None:
        """From now on keep `row` (P,) int32 equal to the pages."""
        self.row = row

    def cached_pages(self, tokens: np.ndarray) -> tuple[int, int]:
        """How many full pages of `tokens` the pool holds already, and how many of these nobody reads now."""
        found = unread = 0
        while (page := self._find(found, tokens)) is not None:
            found += 1
            unread += self._pool.references[page] == 0
        return found, unread

    def reuse(self, tokens: np.ndarray, computed: int) -> int:
        """Moves on to pages that already hold the next tokens; returns the new `computed`.

        The last token is always left to compute, because its logits are wanted.
        """
        pool, index = self._pool, computed // self._pool.page_size
        while (page := self._find(index, tokens)) is not None:
            pool.share(page)
            if index < len(self.pages):
                pool.release(self.pages[index])
                self._set(index, page)
            else:
                self._append(page)
            index += 1
            self._sealed = index
            computed = index * pool.page_size
        return computed

    def copy_start(self, tokens: np.ndarray, computed: int, copy: Callable[[int, int], None]) -> int:
        """Fills a page of its own with the longest start that some page has in common; returns the new `computed`.

        computed: a multiple of the page size, equal to `capacity`. copy(source, destination) copies a page.
        """
        pool, size = self._pool, self._pool.page_size
        wanted = tokens[computed : min(computed + size, len(tokens) - 1)]
        source, count = pool.find_start(self._digest(computed // size, tokens), wanted)
        if count < min(MIN_COPIED_TOKENS, size // 2):
            return computed
        pool.share(source)  # so that it cannot be the page that is taken
        page = pool.take()
        if page is not None:
            copy(source, page)
            self._append(page)
            computed += count
        pool.release(source)
        return computed

    def grow(self, num_tokens: int) -> bool:
        """Takes pages until `num_tokens` fit; False when the pool ran out first (pages taken so far stay)."""
        while self.capacity < num_tokens:
            page = self._pool.take()
            if page is None:
                return False
            self._append(page)
        return True

    def seal(self, tokens: np.ndarray, computed: int) -> None:
        """Makes the pages that are complete now known to the index, or switches to equal ones that are."""
        size = self._pool.page_size
        for index in range(self._sealed, computed // size):
            digest = self._digest(index + 1, tokens)
            part = tokens[index * size : (index + 1) * size]
            self._set(index, self._pool.complete(self.pages[index], digest, self._chain[index], part))
            self._sealed = index + 1

    def release(self, tokens: np.ndarray, computed: int) -> None:
        """Gives all pages back. What was computed stays findable, the last pages being forgotten first."""
        size, full = self._pool.page_size, self._sealed
        while len(self.pages) > full + 1:
            self._pool.release(self.pages.pop())
        if len(self.pages) > full:
            if full * size < computed:
                self._pool.leave(self.pages.pop(), self._chain[full], tokens[full * size : computed])
            else:
                self._pool.release(self.pages.pop())
        while self.pages:
            self._pool.release(self.pages.pop())
        self._sealed = 0
        self.row = None

    def discard(self) -> None:
        """Gives all pages back and makes sure that nobody finds what is in them."""
        for page in self.pages:
            self._pool.disown(page)
            self._pool.release(page)
        self.pages.clear()
        self._sealed = 0
        self.row = None

    def _digest(self, index: int, tokens: np.ndarray) -> bytes:
        """The digest of all tokens before page `index`."""
        size = self._pool.page_size
        while len(self._chain) <= index:
            i = len(self._chain) - 1
            self._chain.append(self._pool.digest(self._chain[i], tokens[i * size : (i + 1) * size]))
        return self._chain[index]

    def _find(self, index: int, tokens: np.ndarray) -> int | None:
        size = self._pool.page_size
        if (index + 1) * size >= len(tokens):
            return None
        digest = self._digest(index + 1, tokens)
        return self._pool.find(digest, self._chain[index], tokens[index * size : (index + 1) * size])

    def _append(self, page: int) -> None:
        self.pages.append(page)
        self._set(len(self.pages) - 1, page)

    def _set(self, index: int, page: int) -> None:
        self.pages[index] = page
        if self.row is not None:
            self.row[index] = page
