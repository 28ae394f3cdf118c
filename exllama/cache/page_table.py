"""The pages of one sequence, in the order of its positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from exllama.cache.pages import PagePool
from exllama.cache.prefix import Prefix, check_images, images_between

MIN_COPIED_TOKENS = 16  # below that, computing the tokens anew costs no more than copying their page


class PageTable:
    """Pages that hold positions page_size * i ... of one sequence, grown as the sequence grows.

    `tokens` is always the whole sequence so far, (n,) int32; only `cut` makes it shorter. `computed` says how many of
    its first tokens have their keys and values in the pages. `row` (P,) int32 mirrors the pages for the batch.

    salt: sequences with different salts share nothing. adapter: names what else changes keys and values (LoRA).
    images: (position of its first token, digest of its content) of every image among the tokens.
    """

    def __init__(
        self, pool: PagePool, salt: bytes = b"", adapter: bytes = b"", images: Sequence[tuple[int, bytes]] = ()
    ) -> None:
        self._pool = pool
        self._images = check_images(images)
        self._chain = [pool.root(salt, adapter)]  # chain[i]: all tokens before page i; grows ahead of the pages
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
        while (prefix := self._wanted(found, tokens)) is not None and (page := self._pool.find(prefix)) is not None:
            found += 1
            unread += self._pool.references[page] == 0
        return found, unread

    def reuse(self, tokens: np.ndarray, computed: int) -> int:
        """Moves on to pages that already hold the next tokens; returns the new `computed`.

        The last token is always left to compute, because its logits are wanted. Spilled pages come back.
        """
        pool, index = self._pool, computed // self._pool.page_size
        while (page := self._claim(index, tokens)) is not None:
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
        end = min(computed + size, len(tokens) - 1)
        images = images_between(self._images, computed, end)
        source, count = pool.find_start(self._prefix(computed // size, tokens), tokens[computed:end], images)
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
            page = self._pool.complete(self.pages[index], self._prefix(index + 1, tokens))
            self._set(index, page)
            self._chain[index + 1] = self._known(page, self._chain[index + 1])
            self._sealed = index + 1

    def cut(self, num_tokens: int) -> int:
        """Only the first `num_tokens`, all computed, are still the sequence's; returns the new `computed`.

        The last of them is left to compute. A page that the index knows by other tokens is given back, not written to.
        """
        full = (num_tokens - 1) // self._pool.page_size
        del self._chain[full + 1 :]
        if self._sealed <= full:
            return num_tokens - 1
        while len(self.pages) > full:
            self._pool.release(self.pages.pop())
        self._sealed = full
        return full * self._pool.page_size

    def release(self, tokens: np.ndarray, computed: int) -> None:
        """Gives all pages back. What was computed stays findable, the last pages being forgotten first."""
        size, full = self._pool.page_size, self._sealed
        while len(self.pages) > full + 1:
            self._pool.release(self.pages.pop())
        if len(self.pages) > full:
            if full * size < computed:
                images = images_between(self._images, full * size, computed)
                self._pool.leave(self.pages.pop(), self._chain[full], tokens[full * size : computed], images)
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

    def _prefix(self, index: int, tokens: np.ndarray) -> Prefix:
        """All tokens before page `index`."""
        size = self._pool.page_size
        while len(self._chain) <= index:
            begin = (len(self._chain) - 1) * size
            images = images_between(self._images, begin, begin + size)
            self._chain.append(self._pool.child(self._chain[-1], tokens[begin : begin + size], images))
        return self._chain[index]

    def _wanted(self, index: int, tokens: np.ndarray) -> Prefix | None:
        """What page `index` would hold if somebody had computed it; None for a page with the last token."""
        return self._prefix(index + 1, tokens) if (index + 1) * self._pool.page_size < len(tokens) else None

    def _claim(self, index: int, tokens: np.ndarray) -> int | None:
        """The page that holds the tokens of page `index`, with one more reader; None if there is none."""
        prefix = self._wanted(index, tokens)
        if prefix is None:
            return None
        page = self._pool.find(prefix)
        if page is None:
            return self._pool.restore(prefix)
        self._pool.share(page)
        self._chain[index + 1] = self._known(page, prefix)
        return page

    def _known(self, page: int, prefix: Prefix) -> Prefix:
        """The object that the index has for an equal prefix: comparing chains ends where they are one object."""
        entry = self._pool.entry(page)
        return entry if entry is not None and entry.digest == prefix.digest else prefix

    def _append(self, page: int) -> None:
        self.pages.append(page)
        self._set(len(self.pages) - 1, page)

    def _set(self, index: int, page: int) -> None:
        self.pages[index] = page
        if self.row is not None:
            self.row[index] = page
