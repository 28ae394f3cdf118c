"""The page pool against a model of what the pages really contain."""

from __future__ import annotations

import time

import numpy as np
import pytest

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


class Weak(PagePool):
    """Everything has the same digest."""

    def digest(self, parent: bytes, content: bytes) -> bytes:
        return b"always the same!"


def test_forged_digest_is_refused() -> None:
    """S18: tokens are compared, so a collision finds nothing."""
    pool = Weak(8, SIZE)
    a, b = ids(1, 2, 3, 4, 5), ids(6, 7, 8, 9, 10)
    first, second = fill(pool, a), fill(pool, b)
    assert first.pages[0] != second.pages[0]
    first.release(a, len(a))
    second.release(b, len(b))
    pool.check_integrity([])
    assert PageTable(pool).reuse(b, 0) == 0
    assert PageTable(pool).reuse(a, 0) == SIZE


def test_forged_digest_of_what_comes_before_is_refused() -> None:
    """The second pages are equal and so are all digests, but the first pages are not."""
    pool = Weak(16, 32)
    same = np.arange(100, 140, dtype=np.int32)
    a, b = (np.concatenate([np.full(32, i, np.int32), same]) for i in (1, 2))
    first = fill(pool, a)
    second = PageTable(pool)
    assert second.reuse(b, 0) == 0
    assert second.copy_start(b, 0, pytest.fail) == 0
    first.release(a, len(a))
    third = PageTable(pool)
    third.grow(32)
    third.seal(b, 32)
    assert third.reuse(b, 32) == 32
    assert third.copy_start(b, 32, pytest.fail) == 32
    pool.check_integrity([second.pages, third.pages])


def test_forged_digest_of_tenants_is_refused() -> None:
    """S18: salts are compared too."""
    pool = Weak(8, SIZE)
    tokens = ids(1, 2, 3, 4, 5)
    fill(pool, tokens, b"a").release(tokens, 5)
    assert PageTable(pool, b"b").reuse(tokens, 0) == 0
    assert PageTable(pool, b"a", b"adapter").reuse(tokens, 0) == 0
    assert PageTable(pool, b"a").reuse(tokens, 0) == SIZE


def test_digest_depends_on_key_parent_and_content() -> None:
    """S18: the hash is keyed and chained."""
    pool, other = PagePool(2, SIZE), PagePool(2, SIZE)
    root, tokens = pool.root(b""), ids(1, 2, 3, 4)
    image = ((2, b"i" * 16),)
    prefixes = [
        pool.child(root, tokens), other.child(other.root(b""), tokens), pool.child(pool.root(b"x"), tokens),
        pool.child(pool.root(b"", b"x"), tokens), pool.child(root, ids(1, 2, 3, 5)), pool.child(root, tokens, image),
    ]  # fmt: skip
    assert len({prefix.digest for prefix in prefixes}) == 6
    assert all(len(prefix.digest) == 16 for prefix in prefixes)
    assert prefixes[0].address == prefixes[1].address, "addresses are the same in all processes"
    assert len({prefix.address for prefix in prefixes}) == 5
    assert [prefixes[0].same(prefix) for prefix in prefixes] == [True, True, False, False, False, False]


def test_salt_and_adapter_do_not_run_together() -> None:
    pool = PagePool(2, SIZE)
    assert pool.root(b"ab", b"c").digest != pool.root(b"a", b"bc").digest


CAT, DOG = b"c" * 32, b"d" * 32


def test_images_separate_equal_placeholders() -> None:
    pool = PagePool(16, 32)
    tokens = np.arange(100, dtype=np.int32)
    cat = PageTable(pool, images=[(40, CAT)])
    cat.grow(100)
    cat.seal(tokens, 100)
    assert PageTable(pool, images=[(40, CAT)]).reuse(tokens, 0) == 96
    dog = PageTable(pool, images=[(40, DOG)])
    assert dog.reuse(tokens, 0) == 32, "only what comes before the image is equal"
    moved = PageTable(pool, images=[(41, CAT)])
    assert moved.reuse(tokens, 0) == 32
    assert PageTable(pool).reuse(tokens, 0) == 32


def test_a_copied_start_ends_before_another_image() -> None:
    pool = PagePool(16, 64)
    tokens = np.arange(60, dtype=np.int32)
    cat = PageTable(pool, images=[(40, CAT)])
    cat.grow(60)
    cat.release(tokens, 60)
    for images, count in (([(40, CAT)], 59), ([(40, DOG)], 40), ([(20, CAT), (40, CAT)], 20), ([], 40)):
        table = PageTable(pool, images=images)
        assert table.copy_start(tokens, 0, lambda source, page: None) == count
        table.discard()


@pytest.mark.parametrize("image", [(-1, CAT), (0, b"short"), (0, b"x" * 65)])
def test_images_that_cannot_be_are_refused(image: tuple[int, bytes]) -> None:
    with pytest.raises(UsageError, match="an image at token"):
        PageTable(PagePool(1), images=[image])


def test_pages_that_become_equal_are_one() -> None:
    """Two sequences generate the same tokens at the same time: the second to fill its page gives it back."""
    pool = PagePool(8, SIZE)
    tokens = np.arange(2 * SIZE + 1, dtype=np.int32)
    tables = [PageTable(pool) for _ in range(3)]
    for end in range(1, len(tokens) + 1):
        for table in tables:
            assert table.grow(end)
            table.seal(tokens[:end], end)
        pool.check_integrity(table.pages for table in tables)
    assert len({tuple(table.pages[:2]) for table in tables}) == 1
    assert pool.num_free == 8 - 2 - 3


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


def test_no_pages_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        PagePool(0)


def test_admission_does_not_depend_on_the_size_of_the_pool() -> None:
    """A search that scanned 10^5 pages with a common parent would take seconds for 200 admissions."""
    pool = PagePool(100_000, SIZE)
    for i in range(50_000):
        tokens = ids(i, i, i, i)
        fill(pool, tokens).release(tokens, SIZE)
    start = time.process_time()
    for i in range(200):
        table = PageTable(pool)
        tokens = ids(i, i, i, i, -1)
        assert table.reuse(tokens, 0) == SIZE
        table.copy_start(np.append(tokens, tokens), SIZE, lambda a, b: None)
        table.release(tokens, SIZE)
    assert time.process_time() - start < 0.5
