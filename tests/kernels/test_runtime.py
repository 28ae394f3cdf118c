"""The C ABI of the runtime on the emulator's invented devices: memory, streams, events, graphs, injected faults."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.kernels.library import DeviceArray, DeviceInfo, KernelError, Library, emulated

MIB = 1 << 20


@pytest.fixture
def library() -> Iterator[Library]:
    """Two devices of 4 MiB."""
    found = Library(emulated("scale"))
    devices(found, "2x4MiB")
    yield found
    found.configure()
    found.free()
    devices(found, "1GiB")


def devices(library: Library, description: str) -> None:
    library.check("exl_emulator_devices", description.encode())


def refused(library: Library, name: str, *arguments: Any) -> KernelError:
    with pytest.raises(KernelError) as error:
        library.check(name, *arguments)
    return error.value


def make(library: Library, kind: str, device: int = 0) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    library.check(f"exl_{kind}_create", device, ctypes.byref(handle))
    return handle


def scale(library: Library, x: DeviceArray, out: DeviceArray, factor: float, stream: ctypes.c_void_p) -> None:
    library.check("test_scale", x, out, factor, x.shape[0], stream)


@pytest.mark.parametrize(
    ("description", "sizes"),
    [
        ("512MiB", [512 * MIB]),
        ("2x3KiB", [3072, 3072]),
        ("1GiB,2x16MiB", [1 << 30, 16 * MIB, 16 * MIB]),
    ],
)
def test_devices_are_as_described(library: Library, description: str, sizes: list[int]) -> None:
    devices(library, description)
    count = ctypes.c_int32()
    library.check("exl_device_count", ctypes.byref(count))
    assert [library.info(device).total_bytes for device in range(count.value)] == sizes
    assert library.info(0).name == b"Emulated GPU 0"
    assert (library.info(0).warp_size, library.info(0).compiled) == (32, 1)
    assert library.handle.exl_backend() == b"emu"
    assert "there are" in refused(library, "exl_device_describe", len(sizes), ctypes.byref(DeviceInfo())).text


@pytest.mark.parametrize(
    "description", ["", "512", "512MB", "x1GiB", "0x1GiB", "1GiB,", "-1GiB", "65x1MiB", "1GiB 2GiB"]
)
def test_wrong_descriptions_are_refused(library: Library, description: str) -> None:
    assert refused(library, "exl_emulator_devices", description.encode()).status == "bad_argument"
    assert library.info(1).total_bytes == 4 * MIB


def test_memory_is_limited_poisoned_and_counted(library: Library) -> None:
    array = library.empty(MIB // 2, np.float16)
    assert array.pointer % 256 == 0
    assert np.isnan(library.get(array)).all()
    assert library.info(0).free_bytes == 3 * MIB
    assert library.info(1).free_bytes == 4 * MIB
    with pytest.raises(KernelError, match=f"{3 * MIB} bytes free of {4 * MIB}, {3 * MIB + 1} were asked for") as error:
        library.empty(3 * MIB + 1, np.uint8)
    assert error.value.status == "out_of_memory"
    library.empty(3 * MIB, np.uint8)
    library.free()
    assert library.info(0).free_bytes == 4 * MIB


def test_memory_is_freed_once_and_read_as_poison_afterwards(library: Library) -> None:
    array = library.put(np.zeros(256, np.uint8))
    library.check("exl_memory_free", 0, array)
    assert refused(library, "exl_memory_free", 0, array).argument == "memory"
    library.arrays.clear()
    assert ctypes.string_at(array.pointer, 256) == b"\xff" * 256


def test_copies_stay_inside_their_allocation(library: Library) -> None:
    array, host = library.empty(16), (ctypes.c_char * 128)()
    error = refused(library, "exl_memory_copy", ctypes.c_void_p(array.pointer + 60), host, ctypes.c_int64(8), None)
    assert error.text == "to: 8 bytes from byte 60 of an allocation of 64"
    assert refused(library, "exl_memory_set", array, 0, ctypes.c_int64(65), None).argument == "memory"


def test_a_graph_replays_its_launches_on_new_data(library: Library) -> None:
    stream = make(library, "stream")
    x, y, z = library.put(np.ones(100, np.float32)), library.empty(100), library.empty(100)
    library.check("exl_graph_begin", stream)
    scale(library, x, y, 2.0, stream)
    scale(library, y, z, 3.0, stream)
    forbidden = [
        ("exl_stream_synchronize", stream),
        ("exl_memory_allocate", 0, ctypes.c_int64(8), ctypes.byref(stream)),
    ]
    assert {refused(library, *call).status for call in forbidden} == {"not_permitted"}
    graph = ctypes.c_void_p()
    library.check("exl_graph_end", stream, ctypes.byref(graph))
    assert np.isnan(library.get(z)).all()
    for factor in (1, 5):
        values = np.full(100, factor, np.float32)
        library.copy(x.pointer, values.ctypes.data, x.nbytes)
        library.check("exl_graph_launch", graph, stream)
        library.check("exl_stream_synchronize", stream)
        assert np.array_equal(library.get(z), 6 * values)
    library.check("exl_graph_destroy", graph)
    library.check("exl_stream_destroy", stream)


def test_a_graph_takes_in_a_second_stream(library: Library) -> None:
    first, second = make(library, "stream"), make(library, "stream")
    fork, join = make(library, "event"), make(library, "event")
    x, y, z = library.put(np.ones(8, np.float32)), library.empty(8), library.empty(8)
    library.check("exl_graph_begin", first)
    scale(library, x, y, 2.0, first)
    library.check("exl_event_record", fork, first)
    library.check("exl_stream_wait", second, fork)
    scale(library, y, z, 2.0, second)
    library.check("exl_event_record", join, second)
    library.check("exl_stream_wait", first, join)
    scale(library, z, x, 2.0, first)
    graph = ctypes.c_void_p()
    library.check("exl_graph_end", first, ctypes.byref(graph))
    for power in (1, 2):
        library.check("exl_graph_launch", graph, first)
        library.check("exl_stream_synchronize", first)
        assert np.array_equal(library.get(x), np.full(8, 8.0**power, np.float32))
    library.check("exl_graph_destroy", graph)
    for kind, handle in (("stream", first), ("stream", second), ("event", fork), ("event", join)):
        library.check(f"exl_{kind}_destroy", handle)


def test_deferred_work_runs_when_something_waits_for_it(library: Library) -> None:
    """A result that is read without waiting is missing, as it may be on a GPU."""
    library.configure(deferred=True)
    producer, consumer = make(library, "stream"), make(library, "stream")
    done = make(library, "event")
    x, y, z = library.put(np.ones(8, np.float32)), library.empty(8), library.empty(8)
    scale(library, x, y, 2.0, producer)
    library.check("exl_event_record", done, producer)
    assert np.isnan(library.get(y)).all()
    library.check("exl_stream_wait", consumer, done)
    scale(library, y, z, 2.0, consumer)
    library.check("exl_stream_synchronize", consumer)
    assert np.array_equal(library.get(z), np.full(8, 4, np.float32))
    elapsed = ctypes.c_float()
    library.check("exl_event_elapsed", done, done, ctypes.byref(elapsed))
    assert elapsed.value == 0
    for kind, handle in (("stream", producer), ("stream", consumer), ("event", done)):
        library.check(f"exl_{kind}_destroy", handle)


def test_devices_in_use_are_not_replaced(library: Library) -> None:
    stream = make(library, "stream", 1)
    assert refused(library, "exl_emulator_devices", b"1GiB").status == "not_permitted"
    library.check("exl_stream_destroy", stream)


@pytest.mark.parametrize("operations", [0, 2])
def test_a_lost_device_refuses_all_but_giving_memory_back(library: Library, operations: int) -> None:
    x, y = library.put(np.ones(8, np.float32)), library.empty(8)
    library.check("exl_emulator_lose_device", 0, ctypes.c_int64(operations))
    for _ in range(operations):
        scale(library, x, y, 2.0, library.stream)
    calls = [
        ("test_scale", x, y, 2.0, 8, None),
        ("exl_stream_synchronize", None),
        ("exl_device_describe", 0, ctypes.byref(DeviceInfo())),
        ("exl_memory_allocate", 0, ctypes.c_int64(8), ctypes.byref(ctypes.c_void_p())),
    ]
    assert {refused(library, *call).status for call in calls} == {"device_lost"}
    assert library.info(1).free_bytes == 4 * MIB


def test_an_allocation_fails_when_told_to(library: Library) -> None:
    library.check("exl_emulator_fail_allocation", 0, ctypes.c_int64(1))
    library.empty(8)
    with pytest.raises(KernelError, match="out_of_memory"):
        library.empty(8)
    library.empty(8)


def test_status_names_follow_the_header(library: Library) -> None:
    names = [library.handle.exl_status_name(number).decode() for number in range(12)]
    assert names == [
        "ok", "bad_argument", "bad_shape", "bad_dtype", "misaligned", "unsupported_device", "out_of_memory",
        "device_lost", "launch_failed", "no_driver", "not_permitted", "unknown",
    ]  # fmt: skip
