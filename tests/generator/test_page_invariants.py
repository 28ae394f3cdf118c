"""check_integrity sees every way in which the books can be wrong: each is broken once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from exllama.cache.page_table import PageTable
from exllama.cache.pages import PagePool
from exllama.cache.prefix import Prefix
from exllama.cache.spill import MemoryTier, Spill
from tests.generator.fake_model import FakeCache, make

SIZE = 256


def pool_in_use() -> tuple[PagePool, PageTable]:
    """Eight pages: two of a live sequence (one complete), three findable (one incomplete), the rest free."""
    cache = FakeCache(8)
    pool = PagePool(8, SIZE, spill=Spill(cache, MemoryTier(1 << 20)))
    ended = np.arange(2 * SIZE + 50, dtype=np.int32)
    live = np.arange(1000, 1000 + SIZE + 10, dtype=np.int32)
    for tokens in (ended, live):
        table = PageTable(pool)
        table.grow(len(tokens))
        table.seal(tokens, len(tokens))
        if tokens is ended:
            table.release(tokens, len(tokens))
    pool.check_integrity([table.pages])
    return pool, table


def findable(pool: PagePool) -> int:
    return next(iter(pool._findable))


def complete(pool: PagePool) -> int:
    return next(iter(pool._index.values()))


def longer(prefix: Prefix | None) -> Prefix:
    assert prefix is not None
    return Prefix(prefix.digest, prefix.parent, prefix.tokens + b"\0\0\0\0")


def lose_a_child(pool: PagePool) -> None:
    pool._children.popitem()


def leave_an_empty_family(pool: PagePool) -> None:
    pool._children[b"nobody"] = {}


def miscount_the_tier(pool: PagePool) -> None:
    assert isinstance(pool._spill, Spill)
    assert isinstance(pool._spill._tier, MemoryTier)
    pool._spill._tier.nbytes += 1


BREAKS: dict[str, tuple[str, Callable[[PagePool], object]]] = {
    "free twice": ("free twice", lambda pool: pool._free.append(pool._free[0])),
    "lost": ("a page is lost", lambda pool: pool._free.pop()),
    "free and findable": ("in two states", lambda pool: pool._free.append(findable(pool))),
    "referenced and free": ("in two states", lambda pool: pool.references.__setitem__(pool._free[0], 1)),
    "referenced and findable": ("in two states", lambda pool: pool.references.__setitem__(findable(pool), 1)),
    "negative": ("negative", lambda pool: pool.references.__setitem__(pool._free[0], -1)),
    "free and indexed": (
        "index disagrees with the states", lambda pool: pool._entries.__setitem__(pool._free[0], pool._entries[0])
    ),
    "findable and not indexed": (
        "index disagrees with the states", lambda pool: pool._entries.__setitem__(findable(pool), None)
    ),
    "another page": ("index disagrees with the pages", lambda pool: pool._index.__setitem__(b"forged", 0)),
    "no page": ("index disagrees with the pages", lambda pool: pool._index.popitem()),
    "tokens": (
        "another number of tokens",
        lambda pool: pool._entries.__setitem__(complete(pool), longer(pool._entries[complete(pool)])),
    ),
    "no child": ("tree of pages", lose_a_child),
    "empty family": ("tree of pages", leave_an_empty_family),
    "more readers": ("reference counts disagree", lambda pool: pool.references.__setitem__(complete(pool), 2)),
    "tier": ("counts its bytes wrong", miscount_the_tier),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_broken_books_are_noticed(name: str) -> None:
    pool, table = pool_in_use()
    message, damage = BREAKS[name]
    if name == "more readers":
        pool.references[table.pages[0]] += 1
    else:
        damage(pool)
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity([table.pages])


def test_unknown_readers_are_noticed() -> None:
    pool, table = pool_in_use()
    for tables in ([], [table.pages, [0]], [table.pages, table.pages]):
        with pytest.raises(AssertionError, match="reference counts disagree"):
            pool.check_integrity(tables)


def test_a_generator_compares_its_tables_with_the_pool() -> None:
    generator, _ = make()
    from exllama.generator import Job

    generator.enqueue(Job("hello", 9))
    generator.step()
    generator.check_integrity()
    sequence = generator._scheduler._running[0]
    sequence.table.pages[0] += 1
    with pytest.raises(AssertionError):
        generator.check_integrity()
    sequence.table.pages[0] -= 1
    generator._scheduler._step.page_table[sequence.slot, 0] += 1
    with pytest.raises(AssertionError, match="page table disagrees"):
        generator.check_integrity()
