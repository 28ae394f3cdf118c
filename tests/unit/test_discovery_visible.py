"""Which GPUs the variables of CUDA and ROCm leave visible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exllama.devices import Gpu
from exllama.devices.visible import CUDA, HIP, HIP_VARIABLES, ORDER, ORDINAL, ROCR, only, select_amd, select_nvidia

UUIDS = ["GPU-8932f937-0000", "GPU-8932f937-1111", "GPU-aaaa0000-2222", "GPU-bbbb0000-3333"]
NVIDIA = [Gpu("nvidia", i, uuid) for i, uuid in enumerate(UUIDS)]
AMD = [Gpu("amd", i, f"GPU-49ce41b1f1dd1fb{i}") for i in range(4)]
SPLIT = Gpu("nvidia", 0, "GPU-cccc0000-4444", partitioned=True)
PARTS = [Gpu("nvidia", 0, uuid, parent=SPLIT.uuid) for uuid in ("MIG-11", "MIG-GPU-cccc0000-4444/11/0")]


def shown(value: str | None) -> list[int]:
    return [gpu.index for gpu in select_nvidia(NVIDIA, {} if value is None else {CUDA: value}).gpus]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2, 3]), ("", []), ("  ", []), ("-1", []), ("0", [0]), ("2,0", [2, 0]), (" 1 , 3 ", [1, 3]),
        ("0,2,-1,1", [0, 2]), ("0,9,1", [0]), ("0,x,1", [0]), ("1,,2", [1]), ("none", []), ("NoDevFiles", []),
        ("GPU-aaaa0000-2222", [2]), ("GPU-aaaa,GPU-bbbb", [2, 3]), ("gpu-aaaa", []), ("GPU-8932f937", []), ("GPU-", []),
        ("GPU-8932f937-1,0", [1, 0]), ("1,GPU-8932f937-1111", []), ("0,0", []), ("99999999999999999999", []),
        ("\u0661", []), ("+1", []), ("MIG-11", []),
    ],
)  # fmt: skip
def test_cuda_visible_devices(value: str | None, expected: list[int]) -> None:
    assert shown(value) == expected


@pytest.mark.parametrize(
    ("value", "note"),
    [
        ("7", "'7' names no device"),
        ("0,0", "names a device twice"),
        ("", "hides every device"),
        ("GPU-8932f937", "several"),
    ],
)
def test_what_names_nothing_is_told(value: str, note: str) -> None:
    (told,) = select_nvidia(NVIDIA, {CUDA: value}).notes
    assert note in told
    assert told.startswith(f"{CUDA}={value}")


def test_mig() -> None:
    gpus = [SPLIT, *PARTS, NVIDIA[3]]
    assert select_nvidia([SPLIT, *PARTS], {}).gpus == PARTS[:1]
    assert select_nvidia(gpus, {}).gpus == [NVIDIA[3]]
    assert select_nvidia(gpus, {CUDA: "MIG-11"}).gpus == PARTS[:1]
    assert select_nvidia(gpus, {CUDA: "MIG-GPU-cccc0000-4444/11/0"}).gpus == PARTS[1:]
    assert select_nvidia(gpus, {CUDA: "1"}).gpus == [NVIDIA[3]]
    assert "mixes MIG devices and whole GPUs" in select_nvidia(gpus, {CUDA: "MIG-11,1"}).notes[0]
    split = select_nvidia(gpus, {CUDA: "0"})
    assert split.gpus == []
    assert "split by MIG" in split.notes[0]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, [0, 1, 2, 3]), ({ROCR: "2,1"}, [2, 1]), ({HIP: "3,0"}, [3, 0]), ({ORDINAL: "1"}, [1]),
        ({CUDA: "1,2"}, [1, 2]),
        ({ROCR: "2,1", HIP: "1"}, [1]), ({ROCR: "3,2,1", CUDA: "2,0"}, [1, 3]), ({ROCR: ""}, []), ({HIP: "-1"}, []),
        ({ROCR: "1", HIP: "1"}, []), ({ROCR: "GPU-49ce41b1f1dd1fb2"}, [2]), ({HIP: "GPU-49ce41b1f1dd1fb2"}, []),
        ({HIP: "0", CUDA: "2"}, [0]), ({ROCR: "0,1", HIP: "0,1", ORDINAL: "0,1"}, [0, 1]),
        ({"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}, [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_rocm_filters_in_two_layers(variables: dict[str, str], expected: list[int]) -> None:
    assert [gpu.index for gpu in select_amd(AMD, variables).gpus] == expected


def test_what_a_user_of_rocm_should_know() -> None:
    notes = select_amd(AMD, {HIP: "0", CUDA: "2", "HSA_OVERRIDE_GFX_VERSION_1": "10.3.0"}).notes
    assert any(f"{CUDA}=2 does not count" in note for note in notes)
    assert any("HSA_OVERRIDE_GFX_VERSION_1=10.3.0" in note for note in notes)
    assert select_amd([], {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}).notes == []


ITEMS = st.sampled_from(["0", "1", "2", "3", "7", "-1", "", " 2 ", "x", *UUIDS, *(gpu.uuid for gpu in AMD), "GPU-aaaa"])
LISTS = st.lists(ITEMS, max_size=5).map(",".join)
VARIABLES = st.dictionaries(st.sampled_from([CUDA, ROCR, HIP, ORDINAL]), LISTS)


@given(VARIABLES)
def test_every_combination_shows_a_subset_and_a_second_look_shows_the_same(variables: dict[str, str]) -> None:
    for gpus, select in ((NVIDIA, select_nvidia), (AMD, select_amd)):
        found = select(gpus, variables)
        assert len({gpu.uuid for gpu in found.gpus}) == len(found.gpus)
        assert set(found.gpus) <= set(gpus)
        assert select(gpus, variables) == found
        ours = (CUDA,) if select is select_nvidia else (ROCR, *HIP_VARIABLES)
        if not any(name in variables for name in ours):
            assert found.gpus == gpus


@given(VARIABLES, st.integers(0, 3))
def test_a_child_sees_just_its_own_device(variables: dict[str, str], index: int) -> None:
    for gpus, select in ((NVIDIA, select_nvidia), (AMD, select_amd)):
        child = {**variables, **only(gpus[index], variables)}
        assert select(gpus, child).gpus == [gpus[index]]


def test_children_of_other_vendors() -> None:
    assert only(NVIDIA[1], {}) == {ORDER: "PCI_BUS_ID", CUDA: UUIDS[1]}
    assert only(AMD[1], {}) == {ROCR: AMD[1].uuid}  # CUDA_VISIBLE_DEVICES stays alone: HIP would read it
    assert only(AMD[1], {}, is_linux=False) == {HIP: "1"}
    assert only(Gpu("emulated", 0), {CUDA: "1"}) == {}
