"""The planner: what it promises for every machine, and how near to the best it comes on small ones."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from exllama.devices import Device, Gpu
from exllama.errors import UsageError
from exllama.loader.placement import PROCESS_BYTES, KindSizes, ModelSizes, Placement, Wishes, plan, split_bytes
from exllama.ops import PAGE_SIZE

MIB, GIB = 1 << 20, 1 << 30


def cpu(free: int = 64 * GIB) -> Device:
    return Device("cpu", "x", 256 * GIB, free, cores=4, logical_cores=8)


def gpus(*free: int, integrated: tuple[int, ...] = ()) -> list[Device]:
    """Emulated ones: no context takes of their memory."""
    return [
        Device(f"emu:{i}", "x", size, size, gpu=Gpu("emulated", i, integrated=i in integrated))
        for i, size in enumerate(free)
    ]


def model(
    blocks: int = 32, block: int = 100 * MIB, tied: bool = False, page: int = MIB, head: int = 50 * MIB
) -> ModelSizes:
    kind = KindSizes(200 * MIB, (block,) * blocks, (page,) * blocks, 0 if tied else 200 * MIB, 30 * MIB, head)
    return ModelSizes(kind, kind, tied, 8192)


def bytes_of(placement: Placement) -> dict[str, int]:
    return {share.device: share.total for share in placement.shares}


def test_everything_on_one_gpu() -> None:
    found = plan(model(), [*gpus(8 * GIB), cpu()])
    assert (found.fits, found.gpu_layers, found.total_layers) == (True, 33, 33)
    assert {found.embedding, *found.blocks, found.head} == {"emu:0"}
    emu, host = found.shares
    assert emu.weights == 32 * 100 * MIB + 400 * MIB
    assert (emu.cache, emu.workspace) == (32 * 32 * MIB, 80 * MIB)
    assert (host.device, host.total) == ("cpu", PROCESS_BYTES)
    assert found.advice == []
    assert set(found.to_json()["devices"][0]) == {
        "device", "weights", "cache", "workspace", "overhead", "total", "free", "capacity",
    }  # fmt: skip


def test_equal_gpus_get_equal_shares_and_the_fewest_are_used() -> None:
    found = plan(model(), [*gpus(3 * GIB, 3 * GIB, 3 * GIB, 3 * GIB), cpu()])
    counts = sorted(found.blocks.count(f"emu:{i}") for i in range(4))
    assert found.gpu_layers == 33
    assert counts[:2] == [0, 0]
    assert counts[3] - counts[2] <= 4  # the one with the head has 450 MiB, 3.4 blocks, beside
    spread = plan(model(), [*gpus(3 * GIB, 3 * GIB, 3 * GIB, 3 * GIB), cpu()], Wishes(spread=True))
    assert spread.fits
    assert min(spread.blocks.count(f"emu:{i}") for i in range(4)) >= 5
    assert list(spread.blocks) == sorted(spread.blocks)


def test_integrated_gpus_come_last() -> None:
    found = plan(model(), [*gpus(16 * GIB, 8 * GIB, integrated=(0,)), cpu()])
    assert {found.head, *found.blocks} == {"emu:1"}


def test_the_last_blocks_go_on_gpus_and_the_head_is_left_out_first() -> None:
    found = plan(model(), [*gpus(2 * GIB), cpu()])
    count = found.gpu_layers
    assert 0 < count < 32
    assert found.blocks == ("cpu",) * (32 - count) + ("emu:0",) * count
    assert (found.embedding, found.head) == ("cpu", "cpu")
    assert f"{33 - count} of 33 layers run on the CPU" in found.advice[0]
    assert len(found.advice) == 3


@pytest.mark.parametrize(
    ("wish", "on_gpu"), [(0, 0), (1, 1), (32, 32), (33, 33), (99, 33), (999, 33), (-1, 33), (50, 33)]
)
def test_gpu_layers_means_layers(wish: int, on_gpu: int) -> None:
    found = plan(model(), [*gpus(8 * GIB), cpu()], Wishes(gpu_layers=wish))
    assert found.fits
    assert found.gpu_layers == on_gpu
    assert (found.head != "cpu") == (on_gpu == 33)


def test_layers_that_were_wished_and_do_not_fit_are_refused_and_not_dropped() -> None:
    for wish in (30, -1):
        found = plan(model(), [*gpus(GIB, GIB), cpu()], Wishes(gpu_layers=wish))
        assert not found.fits
        assert found.gpu_layers == (30 if wish == 30 else 33)
        assert found.advice[0].startswith("Insufficient VRAM for model and cache: emu:0: ")
        share = found.shares[0]
        assert f"{share.total - share.free:,} bytes are missing: {share.total:,} are needed" in found.advice[0]


def test_a_tied_head_lies_with_the_embedding_and_another_one_need_not() -> None:
    tied = plan(model(tied=True), [*gpus(3 * GIB, 3 * GIB), cpu()])
    assert tied.embedding == tied.head != "cpu"
    tight = model().gpu
    need = sum(tight.blocks) + 32 * sum(tight.pages) + tight.head + tight.workspace + tight.head_workspace
    found = plan(model(), [*gpus(need + 100 * MIB), cpu()])
    assert (found.gpu_layers, found.embedding) == (33, "cpu")


def test_gpu_split_counts_the_cache_and_what_is_reserved_stays_free() -> None:
    devices = [*gpus(24 * GIB, 24 * GIB), cpu()]
    found = plan(model(), devices, Wishes(gpu_split=(2 * GIB, 6 * GIB)))
    assert found.gpu_layers == 33
    assert bytes_of(found)["emu:0"] <= 2 * GIB
    assert found.blocks.count("emu:0") < found.blocks.count("emu:1") / 2
    only_second = plan(model(), devices, Wishes(gpu_split=(0, 24 * GIB)))
    assert set(only_second.blocks) == {"emu:1"}
    kept = plan(model(), devices, Wishes(reserve=(23 * GIB, 23 * GIB)))
    assert kept.gpu_layers < 33
    assert all(share.weights + share.cache + share.workspace <= GIB for share in kept.shares if share.device != "cpu")


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        (Wishes(gpu_split=(1, 1, 1)), "Too many entries in gpu_split. 2 GPU devices are available: emu:0, emu:1"),
        (Wishes(gpu_split=(25 * GIB,)), "gpu_split asks for 26.8435 GB of emu:0, expected 0 to 25.8"),
        (Wishes(reserve=(1, 1, 1)), "reserve is"),
        (Wishes(gpu_layers=-2), "gpu_layers is -2, expected 0 to 33"),
    ],
)
def test_wishes_that_no_machine_fulfils(wishes: Wishes, told: str) -> None:
    with pytest.raises(UsageError, match=told.replace(".", "[.]")):
        plan(model(), [*gpus(24 * GIB, 24 * GIB), cpu()], wishes)


def test_layers_on_gpus_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="there is no GPU"):
        plan(model(), [cpu()], Wishes(gpu_layers=4))
    assert plan(model(), [cpu()], Wishes(gpu_layers=0)).fits


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "8", None])
def test_sizes_that_are_none(value: object) -> None:
    with pytest.raises(UsageError, match="gpu_split holds"):
        split_bytes([4.0, value])  # type: ignore[list-item]
    assert split_bytes([1.5, 0]) == (1_500_000_000, 0)


def test_a_cpu_that_is_too_small() -> None:
    found = plan(model(), [cpu(4 * GIB)])
    assert not found.fits
    share = found.shares[0]
    assert f"cpu: {share.total - share.free:,} bytes are missing" in found.advice[0]
    assert f"--cache-tokens {found.max_context} fits" in found.advice
    assert plan(model(), [cpu(4 * GIB)], Wishes(cache_tokens=found.max_context)).fits


SIZES = st.builds(model, st.integers(1, 7), st.integers(1, 400 * MIB), st.booleans(), st.integers(0, 8 * MIB))
ROOMS = st.lists(st.integers(0, 4 * GIB), max_size=3)
WISHES = st.builds(
    Wishes, spread=st.booleans(), gpu_layers=st.none() | st.integers(0, 3), cache_tokens=st.integers(1, 8192)
)


@settings(max_examples=200, deadline=None)
@given(SIZES, ROOMS, st.integers(0, 8 * GIB), WISHES)
def test_a_plan_keeps_its_word(sizes: ModelSizes, rooms: list[int], host: int, wishes: Wishes) -> None:
    assume(rooms or not wishes.gpu_layers)
    devices = [*gpus(*rooms), cpu(host)]
    found = plan(sizes, devices, wishes)
    assert found == plan(sizes, devices, wishes)
    assert found.fits == all(share.total <= share.free for share in found.shares)
    assert len(found.blocks) + 1 == sizes.layers
    assert {found.embedding, *found.blocks, found.head} <= {device.name for device in devices}
    if wishes.gpu_layers is None:  # then nothing is ever put where it has no room
        assert all(share.total <= share.free for share in found.shares if share.device != "cpu")
    else:
        assert found.gpu_layers == min(wishes.gpu_layers, sizes.layers)
    where = [found.blocks.index(name) for name in dict.fromkeys(found.blocks)]
    assert where == sorted(where)
    assert all(len(list(run)) == found.blocks.count(name) for name, run in itertools.groupby(found.blocks))
    if found.max_context:
        again = plan(sizes, devices, replace(wishes, cache_tokens=found.max_context))
        assert again.fits
        assert not found.fits or again.gpu_layers >= found.gpu_layers


@settings(max_examples=100, deadline=None)
@given(SIZES, ROOMS, st.integers(0, 8 * GIB), WISHES, st.integers(0, 2 * GIB), st.integers(0, 3))
def test_more_memory_never_makes_it_worse(
    sizes: ModelSizes, rooms: list[int], host: int, wishes: Wishes, more: int, at: int
) -> None:
    assume(rooms or not wishes.gpu_layers)
    found = plan(sizes, [*gpus(*rooms), cpu(host)], wishes)
    if at < len(rooms):
        better = plan(sizes, [*gpus(*(room + more * (i == at) for i, room in enumerate(rooms))), cpu(host)], wishes)
    else:
        better = plan(sizes, [*gpus(*rooms), cpu(host + more)], wishes)
    assert better.gpu_layers >= found.gpu_layers
    assert better.fits or not found.fits
    if better.gpu_layers == found.gpu_layers and better.fits == found.fits:
        assert better.max_context >= found.max_context


def most_layers(sizes: ModelSizes, rooms: list[int], pages: int) -> int:
    """By trying every number of blocks on every GPU, and the head on each or none."""
    kind, count, best = sizes.gpu, len(sizes.gpu.blocks), 0
    block = kind.blocks[0] + pages * kind.pages[0]
    head = kind.head + kind.head_workspace + (kind.embedding if sizes.tied else 0)
    for numbers in itertools.product(range(count + 1), repeat=len(rooms)):
        for at in [None, *range(len(rooms))]:
            if sum(numbers) > count or (at is not None and sum(numbers) < count):
                continue
            needs = [
                n * block + (kind.workspace if n or at == g else 0) + head * (at == g) for g, n in enumerate(numbers)
            ]
            if all(need <= room for need, room in zip(needs, rooms, strict=True)):
                best = max(best, sum(numbers) + (at is not None))
    return best


@settings(max_examples=150, deadline=None)
@given(SIZES, ROOMS, st.integers(1, 32))
def test_as_many_layers_on_gpus_as_trying_everything_finds(sizes: ModelSizes, rooms: list[int], pages: int) -> None:
    found = plan(sizes, [*gpus(*rooms), cpu()], Wishes(cache_tokens=pages * PAGE_SIZE))
    assert found.gpu_layers == most_layers(sizes, rooms, pages)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(50 * MIB, 400 * MIB), min_size=1, max_size=6), ROOMS)
def test_blocks_of_unequal_size_come_within_a_layer_of_the_best_order(blocks: list[int], rooms: list[int]) -> None:
    kind = replace(model(len(blocks)).gpu, blocks=tuple(blocks), pages=(0,) * len(blocks))
    found = plan(ModelSizes(kind, kind, False, 8192), [*gpus(*rooms), cpu()])
    best = 0
    for cuts in itertools.combinations_with_replacement(range(len(blocks) + 1), len(rooms)):
        parts = [sum(blocks[a:b]) for a, b in zip(cuts, [*cuts[1:], len(blocks)], strict=True)] if rooms else []
        fits = all(part == 0 or part + kind.workspace <= room for part, room in zip(parts, rooms, strict=True))
        best = max(best, len(blocks) - cuts[0] if cuts and fits else 0)
    assert best <= found.gpu_layers <= best + 1  # the head may be one more


def test_attention_over_long_sequences_needs_workspace() -> None:
    kind = replace(model().gpu, partials=100 * MIB, split_page=10 * MIB)
    found = plan(ModelSizes(kind, kind, False, 8192), [*gpus(16 * GIB), cpu()])
    assert found.shares[0].workspace == (30 + 10 * 32 + 50) * MIB
    assert (
        plan(ModelSizes(kind, kind, False, 256), [*gpus(16 * GIB), cpu()]).shares[0].workspace == (30 + 100 + 50) * MIB
    )
