"""Pages that leave the cache come back bit for bit, or not at all: tiers, files, restarts, damage, two processes."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from exllama.cache import disk
from exllama.cache.disk import DiskTier
from exllama.cache.pages import PagePool
from exllama.cache.prefix import Prefix, pack_content, unpack_content
from exllama.cache.spill import MemoryTier
from exllama.errors import SourceError, UsageError

SIZE = 4
NBYTES = 5000
HEADER = {"model": "m", "geometry": [1, 2]}
POOL = PagePool(1, SIZE)
ROOT = Path(__file__).resolve().parents[2]


def prefix_of(seed: int, depth: int = 1) -> Prefix:
    prefix = POOL.root(b"")
    for i in range(depth):
        prefix = POOL.child(prefix, np.arange(SIZE, dtype=np.int32) + 10 * seed + i)
    return prefix


def page_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, NBYTES).astype(np.uint8)


Opener = Callable[..., DiskTier]


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    made = []

    def make(max_bytes: int = 1 << 20, **header: object) -> DiskTier:
        made.append(DiskTier(tmp_path / "pages", max_bytes, HEADER | header, NBYTES))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("pages/*.pages"))


def fill(tier: DiskTier, count: int) -> None:
    for i in range(count):
        tier.store(prefix_of(i), page_of(i))
    tier.flush()


def held(tier: DiskTier, count: int) -> list[int]:
    found = []
    for i in range(count):
        data = tier.load(prefix_of(i))
        if data is not None:
            assert np.array_equal(data, page_of(i)), "a page came back changed"
            found.append(i)
    return found


def test_memory_is_bounded_and_the_oldest_makes_room() -> None:
    tier = MemoryTier(3 * NBYTES)
    for i in range(5):
        tier.store(prefix_of(i), page_of(i))
        tier.check_integrity()
    assert [tier.holds(prefix_of(i)) for i in range(5)] == [False, False, True, True, True]
    assert np.array_equal(tier.load(prefix_of(3)), page_of(3))  # type: ignore[arg-type]
    assert not tier.holds(prefix_of(3)), "it is in the cache now"
    assert tier.nbytes == 2 * NBYTES


def test_memory_sinks_to_disk(opener: Opener) -> None:
    below = opener()
    tier = MemoryTier(2 * NBYTES, below)
    for i in range(4):
        tier.store(prefix_of(i), page_of(i))
    below.flush()
    assert [below.holds(prefix_of(i)) for i in range(4)] == [True, True, False, False]
    assert all(np.array_equal(tier.load(prefix_of(i)), page_of(i)) for i in (0, 3))  # type: ignore[arg-type]
    tier.store(prefix_of(3), page_of(3))
    tier.close()
    assert held(opener(), 4) == [0, 1, 2, 3]


def test_memory_compares_all_tokens() -> None:
    tier = MemoryTier(9 * NBYTES)
    tier.store(prefix_of(1), page_of(1))
    forged = prefix_of(2)
    forged._address = prefix_of(1).address
    assert not tier.holds(forged)
    assert tier.load(forged) is None


def test_pages_survive_a_restart(opener: Opener, tmp_path: Path) -> None:
    first = opener()
    fill(first, 6)
    first.close()
    assert (tmp_path / "pages").stat().st_mode & 0o077 == 0, "others can read what users wrote"
    again = opener()
    assert held(again, 7) == list(range(6))
    again.check_integrity()
    fill(again, 8)
    assert held(again, 8) == list(range(8))
    assert len(files(tmp_path)) == 2, "a process appends to files of its own"


def test_a_page_that_waits_to_be_written_is_found(opener: Opener) -> None:
    tier = opener()
    for i in range(30):
        tier.store(prefix_of(i), page_of(i))
        assert held(tier, i + 1) == list(range(i + 1))


def test_the_folder_is_bounded_and_the_oldest_files_go(opener: Opener, tmp_path: Path) -> None:
    limit = 70_000 + 20 * NBYTES
    tier = opener(limit)
    for i in range(100):
        fill(tier, i + 1)
        assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    found = held(tier, 100)
    assert 10 <= len(found) <= 20
    assert found == list(range(100 - len(found), 100))


def test_too_little_room_is_refused(opener: Opener) -> None:
    with pytest.raises(UsageError, match="not even two"):
        opener(2 * NBYTES - 1)


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match="cannot be kept"):
        DiskTier(tmp_path / "file", 1 << 20, HEADER, NBYTES)


def cut(data: bytearray) -> None:
    del data[-100:]


def cut_all_but_the_header(data: bytearray) -> None:
    del data[200:]


def flip(at: int) -> Callable[[bytearray], None]:
    def damage(data: bytearray) -> None:
        data[at] ^= 1

    return damage


def grow(data: bytearray) -> None:
    data += b"PAGE" + b"\xff" * 500


def huge_header(data: bytearray) -> None:
    data[12:16] = b"\xff\xff\xff\x7f"


# (damage, pages of three that are still found)
DAMAGES: dict[str, tuple[Callable[[bytearray], None], list[int]]] = {
    "cut off": (cut, [0, 1]),
    "cut off in the first record": (cut_all_but_the_header, []),
    "cut off in the header": (lambda data: data.__delitem__(slice(20, None)), []),
    "empty after the magic": (lambda data: data.__delitem__(slice(8, None)), []),
    "a bit of the last page": (flip(-100), [0, 1]),
    "a bit of the last checksum": (flip(-1), [0, 1]),
    "a bit of the header": (flip(30), []),
    "version": (flip(8), []),
    "length of the header": (huge_header, []),
    "garbage behind": (grow, [0, 1, 2]),
    "a bit of the magic of a record": (lambda data: flip(bytes(data).index(b"PAGE", 8))(data), []),
    "a bit of the length of a record": (lambda data: flip(bytes(data).index(b"PAGE", 8) + 15)(data), []),
    "a bit of an address": (lambda data: flip(bytes(data).index(b"PAGE", 8) + 50)(data), [1, 2]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_noticed(name: str, opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage, expected = DAMAGES[name]
    tier = opener()
    fill(tier, 3)
    tier.close()
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        again = opener()
        assert held(again, 3) == expected
        fill(again, 5)
        assert held(again, 5) == list(range(5)), "what was damaged is computed and kept anew"
    assert ("dropped" in caplog.text) == (name != "a bit of an address"), caplog.text
    assert len(caplog.records) <= 2


def test_damage_is_noticed_when_the_page_is_read(
    opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = opener()
    fill(tier, 3)
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert tier.load(prefix_of(2)) is None
    assert "checksum" in caplog.text
    assert not tier.holds(prefix_of(2))
    tier.store(prefix_of(2), page_of(2))
    tier.flush()
    assert held(tier, 3) == [0, 1, 2]


@pytest.mark.parametrize("header", [{"model": "n"}, {"geometry": [1, 3]}, {"more": 1}])
def test_pages_of_another_model_or_cache_are_not_used(
    header: dict[str, object], opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = opener()
    fill(tier, 3)
    tier.close()
    with caplog.at_level(logging.WARNING):
        other = opener(**header)
        assert held(other, 3) == []
        fill(other, 1)
    assert "another model" in caplog.text
    assert next(iter(header)) in caplog.text
    assert len(caplog.records) == 1
    assert held(opener(), 3) == [0, 1, 2], "they are still there for whom they belong to"


def test_foreign_files_are_left_alone(opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "novel.pages").write_bytes(b"Call me Ishmael." * 1000)
    (folder / "empty.pages").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        tier = opener(70_000 + 4 * NBYTES)
        fill(tier, 20)
    assert sorted(record.getMessage().split()[0].rsplit("/", 1)[-1] for record in caplog.records) == [
        "empty.pages", "novel.pages",
    ]  # fmt: skip
    assert (folder / "novel.pages").stat().st_size == 16_000
    assert (folder / "empty.pages").exists()


def test_a_file_that_somebody_deleted(opener: Opener, tmp_path: Path) -> None:
    tier = opener()
    fill(tier, 3)
    files(tmp_path)[0].unlink()
    assert held(tier, 3) == []
    fill(tier, 4)
    assert held(tier, 4) == [0, 1, 2, 3]


def test_a_full_disk_is_a_warning(
    opener: Opener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R08: pages that cannot be written are computed again."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tier = opener()
    fill(tier, 2)
    monkeypatch.setattr(disk, "append_record", full)
    with caplog.at_level(logging.WARNING):
        fill(tier, 5)
    assert [record.getMessage() for record in caplog.records] == [
        f"no more pages are kept in {tier._folder}: No space left on device"
    ]
    assert held(tier, 5) == [0, 1]


CHILD = """
import sys
from tests.generator.test_spill import HEADER, NBYTES, fill, held
from pathlib import Path
from exllama.cache.disk import DiskTier
import tests.generator.test_spill as t
tier = DiskTier(Path(sys.argv[1]), int(sys.argv[2]), HEADER, NBYTES)
for i in range(int(sys.argv[3]), int(sys.argv[4])):
    tier.store(t.prefix_of(i), t.page_of(i))
    tier.load(t.prefix_of(i - 3))
tier.close()
print(len(held(tier, int(sys.argv[4]))))
"""


@pytest.mark.parametrize("limit", [1 << 22, 70_000 + 20 * NBYTES])
def test_two_processes_on_one_folder(limit: int, opener: Opener, tmp_path: Path) -> None:
    """R09: pages of a shared folder."""
    arguments = [[str(tmp_path / "pages"), str(limit), *part] for part in (("0", "60"), ("40", "100"))]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *each], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for each in arguments
    ]
    for child in children:
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
        assert "Traceback" not in errors
        assert errors == "", "nothing was taken for damage"
    found = held(opener(limit), 100)
    if limit == 1 << 22:
        assert found == list(range(100))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit


@pytest.mark.parametrize("images", [(), ((3, b"x" * 16), (4, b"y" * 64))])
def test_content_is_packed_without_loss(images: tuple[tuple[int, bytes], ...]) -> None:
    packed = pack_content(b"12345678", images)
    assert unpack_content(packed) == (b"12345678", images)
    for end in range(len(packed)):
        try:
            assert unpack_content(packed[:end]) != (b"12345678", images)
        except ValueError:
            continue
