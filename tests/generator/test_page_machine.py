"""Random lives of page tables against a model of what the pages really contain, with tiers to spill to."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exllama.cache.disk import DiskTier
from exllama.cache.page_table import PageTable
from exllama.cache.pages import PagePool
from exllama.cache.spill import MemoryTier, Spill, Tier

SIZE = 4
PAGES = 7
NOTHING = 2**64 - 1
HEADER = {"model": "numbers"}


class Numbers:
    """A cache of one number per token; slot i of a page stands for a whole history, see Life.number."""

    num_pages = PAGES
    page_nbytes = SIZE * 8

    def __init__(self) -> None:
        self.slots = np.full((PAGES, SIZE), NOTHING, np.uint64)

    def read_page(self, page: int) -> np.ndarray:
        return self.slots[page].view(np.uint8).copy()

    def write_page(self, page: int, data: np.ndarray) -> None:
        self.slots[page] = data.view(np.uint64)

    def poison_page(self, page: int) -> None:
        self.slots[page] = NOTHING

    def copy_page(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]


class Live:
    """A sequence that runs."""

    def __init__(self, table: PageTable, tokens: list[int], salt: bytes, computed: int) -> None:
        self.table, self.tokens, self.salt, self.computed = table, tokens, salt, computed

    @property
    def array(self) -> np.ndarray:
        return np.array(self.tokens, np.int32)


class Life(RuleBasedStateMachine):
    """Sequences start, fork, grow and end; pages are shared, evicted, spilled and reloaded; the process restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="exllama-pages-"))
        self.numbers: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self.live: list[Live] = []

    @initialize(tiers=st.sampled_from(["none", "memory", "disk", "both"]))
    def begin(self, tiers: str) -> None:
        self.tiers = tiers
        self.open()

    def open(self) -> None:
        self.cache = Numbers()
        self.disk = DiskTier(self.folder, 40_000_000, HEADER, Numbers.page_nbytes) if self.has_disk else None
        tier: Tier | None = self.disk
        if self.tiers in ("memory", "both"):
            tier = MemoryTier(3 * Numbers.page_nbytes, tier)
        self.spill = Spill(self.cache, tier, poison=True)
        self.pool = PagePool(PAGES, SIZE, spill=self.spill)

    @property
    def has_disk(self) -> bool:
        return self.tiers in ("disk", "both")

    def number(self, salt: bytes, history: list[int]) -> int:
        """What a slot holds after this history: the same number for the same history, and for no other."""
        return self.numbers.setdefault((salt, tuple(history)), len(self.numbers))

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=3 * SIZE), salt=st.sampled_from([b"", b"x"]))
    def start(self, tokens: list[int], salt: bytes) -> None:
        table, array = PageTable(self.pool, salt), np.array(tokens, np.int32)
        found, _ = table.cached_pages(array)
        computed = table.reuse(array, 0)
        assert found * SIZE <= computed < len(tokens)
        computed = table.copy_start(array, computed, self.cache.copy_page)
        assert computed < len(tokens)
        self.live.append(Live(table, tokens, salt, computed))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def fork(self, data: st.DataObject, more: list[int]) -> None:
        parent = data.draw(st.sampled_from(self.live))
        full = parent.table.pages[: parent.computed // SIZE]
        known = [self.pool.entry(page) is not None for page in full]  # not those that somebody discarded
        shared = [*known, False].index(False)
        self.start(parent.tokens + more, parent.salt)
        child = self.live[-1]
        assert child.computed >= shared * SIZE
        assert child.table.pages[:shared] == full[:shared], "a fork shares all full pages"

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), max_size=5), count=st.integers(0, 9), look=st.booleans())
    def compute(self, data: st.DataObject, more: list[int], count: int, look: bool) -> None:
        one = data.draw(st.sampled_from(self.live))
        one.tokens = one.tokens + more
        if look:
            one.computed = one.table.reuse(one.array, one.computed)
        target = min(one.computed + count, len(one.tokens))
        one.table.grow(target)
        target = min(target, one.table.capacity)
        for position in range(one.computed, target):
            page = one.table.pages[position // SIZE]
            assert self.pool.references[page] == 1, "a shared page would be written to"
            self.cache.slots[page, position % SIZE] = self.number(one.salt, one.tokens[: position + 1])
        one.computed = max(one.computed, target)
        one.table.seal(one.array, one.computed)

    @precondition(lambda self: any(one.computed for one in self.live))
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        """The last tokens are taken back, whoever shares their pages."""
        one = data.draw(st.sampled_from([one for one in self.live if one.computed]))
        kept = data.draw(st.integers(1, one.computed))
        one.tokens = one.tokens[:kept]
        one.computed = one.table.cut(kept)
        assert one.computed < kept
        for page in one.table.pages[one.computed // SIZE :]:
            assert self.pool.references[page] == 1, "a shared page would be written to"
            assert self.pool.entry(page) is None, "a page that others can find would be written to"
        if one.computed == one.table.capacity:
            one.computed = one.table.copy_start(one.array, one.computed, self.cache.copy_page)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        one = data.draw(st.sampled_from(self.live))
        self.live.remove(one)
        if keep:
            one.table.release(one.array, one.computed)
        else:
            one.table.discard()
        assert one.table.pages == []

    @rule(count=st.integers(1, PAGES))
    def evict(self, count: int) -> None:
        """Somebody wants pages and gives them back unused."""
        pages = [self.pool.take() for _ in range(min(count, self.pool.num_available))]
        for page in pages:
            assert page is not None
            assert (self.cache.slots[page] == NOTHING).all(), "a page that was forgotten was not cleared"
            self.pool.release(page)

    @precondition(lambda self: self.tiers != "none")
    @rule(salt=st.sampled_from([b"", b"x"]))
    def reload(self, salt: bytes) -> None:
        """After everything was evicted, what a tier holds comes back."""
        if self.live:
            return
        self.evict(PAGES)
        before = self.spill.loaded
        for tokens in ([0] * 9, [1] * 9, [0, 1] * 5):
            held = self.spill.holds(self.pool.child(self.pool.root(salt), np.array(tokens[:SIZE], np.int32)))
            self.start(tokens, salt)
            assert (self.spill.loaded > before) == held
            self.live.pop().table.release(np.array(tokens, np.int32), SIZE if held else 0)
            self.evict(PAGES)
            before = self.spill.loaded

    @precondition(lambda self: self.has_disk and not self.live)
    @rule()
    def restart(self) -> None:
        complete = [entry for entry in self.pool._entries if entry is not None and entry.digest]
        self.pool.close()
        self.open()
        assert all(self.spill.holds(prefix) for prefix in complete)

    @invariant()
    def pages_hold_what_the_tables_say(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity(one.table.pages for one in self.live)
        for one in self.live:
            for position in range(one.computed):
                held = self.cache.slots[one.table.pages[position // SIZE], position % SIZE]
                assert held == self.number(one.salt, one.tokens[: position + 1])

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
        shutil.rmtree(self.folder)


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase
