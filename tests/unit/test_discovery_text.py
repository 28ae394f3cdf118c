"""What the tools print, of several releases and moods, read into GPUs. The texts follow the vendors' documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exllama.devices import Gpu, amd, nvidia
from exllama.devices.merge import merge
from exllama.devices.numbers import pci_id, size

MIB, GIB = 1 << 20, 1 << 30
UUIDS = [f"GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3{i:x}" for i in range(16)]


def row(index: int = 0, name: str = "NVIDIA GeForce RTX 3090", memory: str = "24576, 1234, 23001", **more: str) -> str:
    ends = {"driver": "550.54.15", "capability": "8.6", "mig": "[N/A]", **more}
    bus = f"00000000:{index + 1:02X}:00.0"
    return f"{index}, {UUIDS[index]}, {bus}, {name}, {memory}, {ends['driver']}, {ends['capability']}, {ends['mig']}\n"


def test_a_row_of_nvidia_smi() -> None:
    (gpu,) = nvidia.parse_query(row())
    assert gpu == Gpu(
        vendor="nvidia", index=0, uuid=UUIDS[0], pci="00000000:01:00.0", name="NVIDIA GeForce RTX 3090", arch="sm_86",
        total=24576 * MIB, free=23001 * MIB, driver="550.54.15", sources=("nvidia-smi",),
    )  # fmt: skip


def test_an_old_driver_has_fewer_fields() -> None:
    text = f"1, {UUIDS[1]}, 00000000:3B:00.0, Tesla T4, 15109, 3, 15106, 410.104\n"
    (gpu,) = nvidia.parse_query(text, nvidia.FIELDS[:-2])
    assert (gpu.name, gpu.pci, gpu.arch, gpu.driver) == ("Tesla T4", "00000000:3b:00.0", "", "410.104")
    assert gpu.free == 15106 * MIB


def test_a_name_with_commas() -> None:
    (gpu,) = nvidia.parse_query(row(name="NVIDIA Graphics Device, rev. 2, eng"))
    assert (gpu.name, gpu.total) == ("NVIDIA Graphics Device, rev. 2, eng", 24576 * MIB)


@pytest.mark.parametrize(
    "unknown",
    ["[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "[Insufficient Permissions]", "[GPU requires reset]", ""],
)
def test_an_unknown_value_is_not_zero(unknown: str) -> None:
    (gpu,) = nvidia.parse_query(row(memory=f"{unknown}, {unknown}, {unknown}", driver=unknown, capability=unknown))
    assert (gpu.total, gpu.free, gpu.driver, gpu.arch) == (None, None, "", "")
    assert gpu.uuid == UUIDS[0]


@pytest.mark.parametrize(
    "memory", ["24 576, 1 234, 23 001", "24.576, 1.234, 23.001", "24\u202f576, 1\u202f234, 23\u202f001"]
)
def test_numbers_as_other_countries_write_them(memory: str) -> None:
    (gpu,) = nvidia.parse_query(row(memory=memory))
    assert (gpu.total, gpu.free) == (24576 * MIB, 23001 * MIB)


def test_thousands_with_commas_split_the_row_and_are_not_believed() -> None:
    """ "24,576, 1,234, 23,001" cannot be told from more fields: its numbers contradict each other."""
    (gpu,) = nvidia.parse_query(row(memory="24,576, 1,234, 23,001"))
    assert (gpu.total, gpu.free) == (None, None)


def test_sixty_four_gpus() -> None:
    rows = "".join(
        f"{i}, GPU-{i:08x}, 00000000:{i:02X}:00.0, NVIDIA H200, 143771, 1, 143156, 580.1, 9.0, Disabled\n"
        for i in range(64)
    )
    found = nvidia.parse_query(rows)
    assert [gpu.index for gpu in found] == list(range(64))
    assert {gpu.arch for gpu in found} == {"sm_90"}


GARBAGE = [
    "",
    "No devices were found\n",
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that ...\n",
    "Failed to initialize NVML: Driver/library version mismatch\n",
    "<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1>, , , , , , , , , , </body></html>",
    "0, , , , , , , , , \n",
    "\x00\xff\ufffd,1,2,3,4,5,6,7,8,9",
    '{"gpu_data": "none"}',
    "[1, 2, null]",
    '{"card0": [], "card1": "x", "cardx": {}}',
    "[" * 100000,
    row()[:40],
]


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_gives_no_gpu(text: str) -> None:
    assert nvidia.parse_query(text) == []
    assert nvidia.parse_xml(text) == []
    assert nvidia.parse_list(text) == {}
    assert amd.parse_rocm_smi(text) == []
    assert amd.parse_amd_smi(text, text, text) == []


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    for prefix in ("", "0, GPU-1, 00000000:01:00.0, ", "card0", '{"card0": ', "<nvidia_smi_log>"):
        nvidia.parse_query(prefix + text)
        nvidia.parse_xml(prefix + text)
        nvidia.parse_list(prefix + text)
        amd.parse_rocm_smi(prefix + text)
        amd.parse_amd_smi(prefix + text)
        size(text)
        pci_id(text)


XML = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>535.104.05</driver_version>
  <gpu id="00000000:81:00.0">
    <product_name>NVIDIA A100-SXM4-40GB</product_name>
    <uuid>GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f</uuid>
    <mig_mode><current_mig>Enabled</current_mig><pending_mig>Enabled</pending_mig></mig_mode>
    <mig_devices>
      <mig_device><index>0</index><gpu_instance_id>9</gpu_instance_id><compute_instance_id>0</compute_instance_id>
        <fb_memory_usage><total>4864 MiB</total><used>3 MiB</used><free>4861 MiB</free></fb_memory_usage></mig_device>
      <mig_device><index>1</index><gpu_instance_id>11</gpu_instance_id><compute_instance_id>0</compute_instance_id>
        <fb_memory_usage><total>9856 MiB</total><used>6 MiB</used><free>9850 MiB</free></fb_memory_usage></mig_device>
    </mig_devices>
    <fb_memory_usage><total>[Insufficient Permissions]</total><used>N/A</used><free>N/A</free></fb_memory_usage>
  </gpu>
</nvidia_smi_log>
"""
LIST = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
  MIG 1g.5gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 2g.10gb    Device  1: (UUID: MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/11/0)
"""


def test_mig_devices_have_their_own_memory_and_uuid() -> None:
    whole, *parts = nvidia.parse_xml(XML)
    assert whole.partitioned
    assert whole.total is None
    assert [part.uuid for part in parts] == ["", ""]
    found = nvidia.name_parts([whole, *parts], nvidia.parse_list(LIST))
    assert [(part.uuid, part.total, part.free) for part in found] == [
        ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", 4864 * MIB, 4861 * MIB),
        ("MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/11/0", 9856 * MIB, 9850 * MIB),
    ]
    assert found[0].name == "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    assert {part.parent for part in found} == {whole.uuid}


def test_mig_devices_that_may_not_be_listed() -> None:
    lists = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)\n"
    assert nvidia.name_parts(nvidia.parse_xml(XML), nvidia.parse_list(lists)) == []


def test_an_entity_bomb_is_not_read() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><nvidia_smi_log><gpu>&b;</gpu></nvidia_smi_log>'
    assert nvidia.parse_xml(bomb) == []
    assert nvidia.parse_xml(f"<nvidia_smi_log>{bomb}") == []


@pytest.mark.parametrize(
    ("release", "compatible", "jetpack", "driver", "arch"),
    [
        ("# R36 (release), REVISION: 3.0, GCID: 36923193", "nvidia,p3737\0nvidia,tegra234", "", "JetPack 6", "sm_87"),
        ("# R35 (release), REVISION: 4.1", "nvidia,tegra194", "", "JetPack 5", "sm_72"),
        ("", "nvidia,tegra234", "6.1", "JetPack 6", "sm_87"),
        ("# R99 (release)", "nvidia,tegra234", "", "", "sm_87"),
    ],
)
def test_jetsons(release: str, compatible: str, jetpack: str, driver: str, arch: str) -> None:
    gpu = nvidia.parse_jetson(release, compatible, (8 * GIB, 5 * GIB), jetpack)
    assert gpu is not None
    assert (gpu.driver, gpu.arch, gpu.integrated, gpu.total, gpu.free) == (driver, arch, True, 8 * GIB, 5 * GIB)


def test_another_arm_server_is_no_jetson() -> None:
    assert nvidia.parse_jetson("", "arm,neoverse-n1", (8 * GIB, 5 * GIB)) is None


ROCM_SMI = {
    "card0": {
        "VRAM Total Memory (B)": "21458059264", "VRAM Total Used Memory (B)": "27856896",
        "Card Series": "Radeon RX 7900 XT", "GFX Version": "gfx1100", "Node ID": "1", "GUID": "26967",
        "Unique ID": "0x49ce41b1f1dd1fb8", "PCI Bus": "0000:03:00.0",
    },
    "system": {"Driver version": "6.8.5"},
}  # fmt: skip


def test_rocm_smi() -> None:
    (gpu,) = amd.parse_rocm_smi(json.dumps(ROCM_SMI))
    assert (gpu.name, gpu.arch, gpu.uuid, gpu.pci) == (
        "Radeon RX 7900 XT", "gfx1100", "GPU-49ce41b1f1dd1fb8", "00000000:03:00.0",
    )  # fmt: skip
    assert (gpu.total, gpu.free) == (21458059264, 21458059264 - 27856896)


def test_rocm_smi_of_older_releases() -> None:
    """Other capitals and names, a warning before, card numbers with holes."""
    old = {
        "card2": {"VRAM Total Memory (B)": "17163091968", "VRAM Used Memory (B)": "6815744", "Card series": "Vega 20"}
    }
    (gpu,) = amd.parse_rocm_smi(f"WARNING: No JSON data to report\n{json.dumps(old)}\nWARNING: done")
    assert (gpu.index, gpu.name, gpu.arch, gpu.free) == (2, "Vega 20", "", 17163091968 - 6815744)


def amd_smi_entry(total: object = 24560, unit: str = "MB", used: object = 26) -> dict[str, object]:
    memory = {key: {"value": value, "unit": unit} for key, value in (("total_vram", total), ("used_vram", used))}
    return {"gpu": 0, "mem_usage": {**memory, "free_vram": None, "total_gtt": None}}


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"gpu_data": rows}], ids=["list", "gpu_data"])
def test_amd_smi(wrap: object) -> None:
    assert callable(wrap)
    static = wrap(
        [{"gpu": 0, "asic": {"market_name": "Radeon RX 7900 XTX", "target_graphics_version": "gfx1100",
          "asic_serial": "0x49CE41B1F1DD1FB8"}}]
    )  # fmt: skip
    listing = wrap([{"gpu": 0, "bdf": "0000:2F:00.0", "uuid": "ff"}])
    (gpu,) = amd.parse_amd_smi(json.dumps(wrap([amd_smi_entry()])), json.dumps(static), json.dumps(listing))
    assert (gpu.name, gpu.arch, gpu.pci) == ("Radeon RX 7900 XTX", "gfx1100", "00000000:2f:00.0")
    assert gpu.uuid == "GPU-49ce41b1f1dd1fb8"
    assert (gpu.total, gpu.free) == (24560 * MIB, 24534 * MIB)


@pytest.mark.parametrize(
    ("entry", "total", "free"),
    [
        (amd_smi_entry("24560"), 24560 * MIB, 24534 * MIB),
        (amd_smi_entry(24, "GB", 1), 24 * GIB, 23 * GIB),
        (amd_smi_entry("N/A"), None, None),
        (amd_smi_entry(24560, "MB", "N/A"), 24560 * MIB, None),
        (amd_smi_entry(24560, "furlongs"), None, None),
        ({"gpu": 0, "mem_usage": None}, None, None),
    ],
)
def test_amd_smi_amounts(entry: dict[str, object], total: int | None, free: int | None) -> None:
    (gpu,) = amd.parse_amd_smi(json.dumps([entry]))
    assert (gpu.total, gpu.free) == (total, free)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def card(number: int, pci: str, total: int, shared: int) -> dict[str, str]:
    return {
        f"sys/class/drm/card{number}/device/{name}": text
        for name, text in {
            "vendor": "0x1002\n", "mem_info_vram_total": f"{total}\n", "mem_info_vram_used": "1048576\n",
            "mem_info_gtt_total": f"{shared}\n", "unique_id": "49ce41b1f1dd1fb8\n",
            "uevent": f"DRIVER=amdgpu\nPCI_SLOT_NAME={pci}\n",
        }.items()
    }  # fmt: skip


def test_sysfs(tmp_path: Path) -> None:
    properties = "simd_count 192\ngfx_target_version 110000\nlocation_id 768\ndomain 0\nunique_id 5318\n"
    write(
        tmp_path,
        card(1, "0000:03:00.0", 20 * GIB, 15 * GIB)
        | {"sys/class/kfd/kfd/topology/nodes/1/properties": properties}
        | {"sys/class/kfd/kfd/topology/nodes/0/properties": "simd_count 0\ngfx_target_version 0\n"}
        | {"sys/class/drm/card0/device/vendor": "0x8086\n", "sys/class/drm/card1-DP-1/status": "connected\n"},
    )
    (gpu,) = amd.read_sysfs(tmp_path)
    assert (gpu.index, gpu.arch, gpu.pci, gpu.uuid) == (1, "gfx1100", "00000000:03:00.0", "GPU-49ce41b1f1dd1fb8")
    assert (gpu.total, gpu.free, gpu.integrated) == (20 * GIB, 20 * GIB - MIB, False)


def test_an_apu_is_integrated(tmp_path: Path) -> None:
    (gpu,) = amd.read_sysfs(write(tmp_path, card(0, "0000:c5:00.0", GIB // 2, 54 * GIB)))
    assert gpu.integrated


@pytest.mark.parametrize(
    ("number", "target"), [(110000, "gfx1100"), (90010, "gfx90a"), (90402, "gfx942"), (120001, "gfx1201")]
)
def test_targets_of_kfd(tmp_path: Path, number: int, target: str) -> None:
    text = f"simd_count 4\ngfx_target_version {number}\nlocation_id 768\n"
    write(tmp_path, card(0, "0000:03:00.0", GIB, GIB) | {"sys/class/kfd/kfd/topology/nodes/1/properties": text})
    assert amd.read_sysfs(tmp_path)[0].arch == target


def test_kfd_that_is_missing_or_closed(tmp_path: Path) -> None:
    assert "amdgpu driver is missing" in amd.missing_driver(tmp_path)
    write(tmp_path, {"dev/kfd": ""})
    assert amd.missing_driver(tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "unit", "found"),
    [
        ("24576", "MiB", 24576 * MIB), ("4864 MiB", "", 4864 * MIB), ("1.5", "GiB", 1536 * MIB), ("12", "", 12),
        ("", "MiB", None), ("-5", "MiB", None), ("1e3", "MiB", None), ("9" * 24, "MiB", None), ("9", "KiB", 9 << 10),
    ],
)  # fmt: skip
def test_sizes(text: str, unit: str, found: int | None) -> None:
    assert size(text, unit) == found


def test_pci_ids_are_one_whatever_their_spelling() -> None:
    assert pci_id("0000:3B:00.0") == pci_id("00000000:3b:00.0") == pci_id("3b:00.0") == "00000000:3b:00.0"
    assert pci_id("card0") == ""


def gpu(vendor: str = "nvidia", **known: object) -> Gpu:
    return Gpu(vendor, 0, **known)  # type: ignore[arg-type]


def test_sources_are_put_together_by_uuid_and_pci_and_never_by_number() -> None:
    tool = [gpu(uuid="GPU-a", pci="00000000:01:00.0", total=8), gpu(uuid="GPU-b", pci="00000000:02:00.0", free=3)]
    files = [gpu(pci="00000000:02:00.0", name="B", total=9, free=1), gpu(uuid="gpu-A", arch="sm_90", free=2)]
    found, notes = merge(tool, files)
    assert [(each.uuid, each.name, each.arch, each.total, each.free) for each in found] == [
        ("GPU-a", "", "sm_90", 8, None),
        ("GPU-b", "B", "", 9, 3),
    ]
    assert notes == []
    assert len(merge([gpu("amd", pci="00000000:01:00.0")], tool)[0]) == 3


def test_sources_that_contradict_each_other() -> None:
    found, notes = merge([gpu(uuid="GPU-a", total=16 * GIB)], [gpu(uuid="GPU-a", total=8 * GIB)])
    assert found[0].total == 16 * GIB
    assert len(notes) == 1
    assert "using the first" in notes[0]
