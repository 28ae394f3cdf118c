"""The page pool against a model of what the pages really contain."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exllama.cache.page_table import PageTable
from exllama.cache.pages import PagePool
from exllama.errors import UsageError

SIZE = 4


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def fill(pool: PagePool, tokens: np.ndarray, salt: bytes = b"") -> PageTable:
    table = PageTable(pool, salt)
    assert table.grow(len(tokens))
    table.seal(tokens, len(tokens))
    return table


def test_equal_prefixes_share_pages_while_alive() -> None:
    pool = PagePool(64, SIZE)
    tokens = np.arange(4 * SIZE + 1, dtype=np.int32)
    tables = [fill(pool, tokens) for _ in range(16)]
    pool.check_integrity(t.pages for t in tables)
    assert len({p for t in tables for p in t.pages}) == 4 + 16  # four shared pages, one private tail each
    for table in tables:
        table.release(tokens, len(tokens))
    pool.check_integrity([])
    assert pool.num_available == 64


def test_prefix_is_found_after_the_end_and_leaves_the_last_token() -> None:
    pool = PagePool(8, SIZE)
    tokens = np.arange(3 * SIZE, dtype=np.int32)
    first = fill(pool, tokens)
    pages = list(first.pages)
    first.release(tokens, len(tokens))
    again = PageTable(pool)
    assert again.reuse(tokens, 0) == 2 * SIZE  # the third page holds the last token, which must be computed
    assert again.pages == pages[:2]
    longer = PageTable(pool)
    assert longer.reuse(np.append(tokens, ids(1)), 0) == 3 * SIZE


def test_salt_separates_equal_tokens() -> None:
    pool = PagePool(8, SIZE)
    tokens = np.arange(3 * SIZE, dtype=np.int32)
    fill(pool, tokens, b"a").release(tokens, len(tokens))
    assert PageTable(pool, b"b").reuse(tokens, 0) == 0
    assert PageTable(pool, b"a").reuse(tokens, 0) == 2 * SIZE


def test_forged_digest_is_refused() -> None:
    class Weak(PagePool):
        def digest(self, parent: bytes, tokens: np.ndarray) -> bytes:
            return b"always the same!"

    pool = Weak(8, SIZE)
    a, b = ids(1, 2, 3, 4, 5), ids(6, 7, 8, 9, 10)
    first, second = fill(pool, a), fill(pool, b)
    assert first.pages[0] != second.pages[0]
    first.release(a, len(a))
    second.release(b, len(b))
    pool.check_integrity([])
    assert PageTable(pool).reuse(b, 0) == 0
    assert PageTable(pool).reuse(a, 0) == SIZE


def test_digest_depends_on_key_parent_and_tokens() -> None:
    pool, other = PagePool(2, SIZE), PagePool(2, SIZE)
    root, tokens = pool.root(b""), ids(1, 2, 3, 4)
    digests = {pool.digest(root, tokens), other.digest(root, tokens), pool.digest(pool.root(b"x"), tokens)}
    assert len(digests | {pool.digest(root, ids(1, 2, 3, 5))}) == 4
    assert all(len(digest) == 16 for digest in digests)


def test_least_recently_used_page_goes_first() -> None:
    pool = PagePool(4, SIZE)
    chains = [np.full(SIZE, i, np.int32) for i in range(4)]
    for tokens in chains:
        fill(pool, tokens).release(tokens, SIZE)
    touched = PageTable(pool)
    assert touched.reuse(np.append(chains[0], ids(9)), 0) == SIZE
    touched.release(chains[0], SIZE)
    assert pool.num_free == 0
    taken = PageTable(pool)
    assert taken.grow(SIZE)
    found = [PageTable(pool).cached_pages(np.append(tokens, ids(9)))[0] for tokens in chains]
    assert found == [1, 0, 1, 1]


def test_deeper_pages_of_a_sequence_are_forgotten_first() -> None:
    pool = PagePool(3, SIZE)
    tokens = np.arange(3 * SIZE, dtype=np.int32)
    fill(pool, tokens).release(tokens, len(tokens))
    PageTable(pool).grow(SIZE)
    assert PageTable(pool).cached_pages(np.append(tokens, ids(0))) == (2, 2)


def test_incomplete_page_is_copied_not_shared() -> None:
    pool = PagePool(8, 32)
    tokens = np.arange(50, dtype=np.int32)
    fill(pool, tokens).release(tokens, 50)
    longer = np.concatenate([tokens[:48], ids(7, 7, 7)])
    table, copies = PageTable(pool), []
    computed = table.reuse(longer, 0)
    assert computed == 32
    assert table.copy_start(longer, computed, lambda a, b: copies.append((a, b))) == 48
    ((source, destination),) = copies
    assert table.pages[1] == destination != source
    assert pool.references[source] == 0
    pool.check_integrity([table.pages])


def test_abandoned_pages_do_not_pile_up() -> None:
    pool = PagePool(16, 32)
    for length in [20, 25, 25, 22, 30]:
        tokens = np.arange(length, dtype=np.int32)
        fill(pool, tokens).release(tokens, length)
        pool.check_integrity([])
    assert pool.num_free == 15  # one page knows the longest start


def test_discarded_pages_are_not_found() -> None:
    pool = PagePool(8, SIZE)
    tokens = np.arange(2 * SIZE + 1, dtype=np.int32)
    fill(pool, tokens).discard()
    pool.check_integrity([])
    assert pool.num_free == 8
    assert PageTable(pool).reuse(tokens, 0) == 0


def test_broken_bookkeeping_is_noticed() -> None:
    pool = PagePool(4, SIZE)
    table = fill(pool, np.arange(SIZE, dtype=np.int32))
    with pytest.raises(AssertionError, match="reference counts disagree"):
        pool.check_integrity([])
    pool.references[table.pages[0]] = 0
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity()


def test_no_pages_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        PagePool(0)


def test_admission_does_not_depend_on_the_size_of_the_pool() -> None:
    """A search that scanned 10^5 pages with a common parent would take seconds for 200 admissions."""
    pool = PagePool(100_000, SIZE)
    for i in range(50_000):
        tokens = ids(i, i, i, i)
        fill(pool, tokens).release(tokens, SIZE)
    start = time.perf_counter()
    for i in range(200):
        table = PageTable(pool)
        tokens = ids(i, i, i, i, -1)
        assert table.reuse(tokens, 0) == SIZE
        table.copy_start(np.append(tokens, tokens), SIZE, lambda a, b: None)
        table.release(tokens, SIZE)
    assert time.perf_counter() - start < 0.5


class Pages(RuleBasedStateMachine):
    """Random life of sequences. contents[page][i] is the history that a real page's slot is computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(7, SIZE, key=b"k")
        self.contents: list[list[object]] = [[None] * SIZE for _ in range(7)]
        self.live: list[tuple[PageTable, list[int], bytes, int]] = []  # table, tokens, salt, computed

    def copy(self, source: int, destination: int) -> None:
        self.contents[destination] = list(self.contents[source])

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=3 * SIZE), salt=st.sampled_from([b"", b"x"]))
    def start(self, tokens: list[int], salt: bytes) -> None:
        table, array = PageTable(self.pool, salt), np.array(tokens, np.int32)
        found, unread = table.cached_pages(array)
        before = self.pool.num_available
        computed = table.reuse(array, 0)
        assert computed == found * SIZE < len(tokens)
        assert self.pool.num_available == before - unread
        computed = table.copy_start(array, computed, self.copy)
        assert computed < len(tokens)
        self.live.append((table, tokens, salt, computed))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), max_size=5), count=st.integers(0, 9), look=st.booleans())
    def compute(self, data: st.DataObject, more: list[int], count: int, look: bool) -> None:
        i = data.draw(st.integers(0, len(self.live) - 1))
        table, tokens, salt, computed = self.live[i]
        tokens = tokens + more
        array = np.array(tokens, np.int32)
        if look:
            computed = table.reuse(array, computed)
        target = min(computed + count, len(tokens))
        table.grow(target)
        target = min(target, table.capacity)
        for position in range(computed, target):
            page = table.pages[position // SIZE]
            assert self.pool.references[page] == 1, "a shared page would be written to"
            self.contents[page][position % SIZE] = (salt, tuple(tokens[: position + 1]))
        computed = max(computed, target)
        table.seal(array, computed)
        self.live[i] = (table, tokens, salt, computed)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        table, tokens, _, computed = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        if keep:
            table.release(np.array(tokens, np.int32), computed)
        else:
            table.discard()
        assert table.pages == []

    @invariant()
    def pages_hold_what_the_tables_say(self) -> None:
        self.pool.check_integrity(table.pages for table, *_ in self.live)
        for table, tokens, salt, computed in self.live:
            for position in range(computed):
                held = self.contents[table.pages[position // SIZE]][position % SIZE]
                assert held == (salt, tuple(tokens[: position + 1]))


Pages.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestPages = Pages.TestCase
