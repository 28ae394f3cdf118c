"""Discovery with real processes: tools on PATH that answer, fail, hang or talk without end, and trials that do."""

from __future__ import annotations

import os
import select
import shutil
from pathlib import Path

import pytest

from exllama.cli import doctor
from exllama.devices import Device, Discovery, Gpu, discover
from exllama.devices.discovery import NO_GPU, find, refreshed, unusable
from exllama.devices.tools import MAX_OUTPUT, ToolFailure, run_tool
from exllama.devices.trial import largest_error, validated
from exllama.errors import UsageError
from tests.unit.test_discovery_text import LIST, ROCM_SMI, UUIDS, XML, card, row, write

GIB = 1 << 30
CAT, HEAD, ECHO, SLEEP = (shutil.which(name) for name in ("cat", "head", "echo", "sleep"))
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "CUDA_DEVICE_ORDER",
    "EXLLAMA_EMU_DEVICES", "EXLLAMA_PROBE_TIMEOUT", "JETSON_JETPACK",
)  # fmt: skip


class Machine:
    """A folder that stands for `/`, and tools on PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.tools = folder / "root", folder / "tools"
        self.root.mkdir()
        self.tools.mkdir()
        write(self.root, {"proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n"})

    def tool(self, name: str, script: str) -> None:
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def answers(self, name: str, text: str, code: int = 0) -> None:
        (self.tools / f"{name}.txt").write_text(text)
        self.tool(name, f"{CAT} '{self.tools / name}.txt'; exit {code}")

    def look(self) -> Discovery:
        return discover(self.root)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.tools))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EXLLAMA_PROBE_TIMEOUT", "900")  # a busy machine is no reason to fail
    return made


def test_no_gpu(machine: Machine) -> None:
    found = machine.look()
    assert [device.name for device in found.devices] == ["cpu"]
    assert found.notes[0].startswith(f"{NO_GPU}: nvidia-smi is not on PATH")


def test_two_gpus(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.answers("nvidia-smi", row() + row(1, "Tesla T4", "15360, 3, 15106", capability="7.5"))
    found = machine.look()
    assert [(device.name, device.model) for device in found.devices[:2]] == [
        ("cuda:0", "NVIDIA GeForce RTX 3090"), ("cuda:1", "Tesla T4"),
    ]  # fmt: skip
    assert found.devices[-1].name == "cpu"
    assert any("set CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in found.notes)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUIDS[1])
    found = machine.look()
    assert [(device.name, device.model) for device in found.gpus] == [("cuda:0", "Tesla T4")]
    assert any(f"user overrode visible devices: CUDA_VISIBLE_DEVICES={UUIDS[1]}" in note for note in found.notes)


def test_a_driver_that_lacks_a_field_is_asked_again(machine: Machine) -> None:
    short = ", ".join(row().strip().split(", ")[:-1])
    refusal = 'echo "Field \\"mig.mode.current\\" is not a valid field to query."; exit 2'
    machine.tool("nvidia-smi", f'case "$1" in *mig*) {refusal};; esac\necho "{short}"')
    assert [device.name for device in machine.look().gpus] == ["cuda:0"]


def test_mig_devices_are_listed_apart(machine: Machine) -> None:
    uuid = "GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f"
    line = f"0, {uuid}, 00000000:81:00.0, NVIDIA A100-SXM4-40GB, 40960, 9, 40951, 535.104.05, 8.0, Enabled"
    (machine.tools / "xml").write_text(XML)
    (machine.tools / "list").write_text(LIST)
    machine.tool(
        "nvidia-smi", f"case \"$1\" in -q) {CAT} '{machine.tools}/xml';; -L) {CAT} '{machine.tools}/list';;"
        f' *) echo "{line}";; esac',
    )  # fmt: skip
    (device,) = machine.look().gpus
    assert device.gpu is not None
    assert (device.gpu.uuid, device.total) == ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", 4864 << 20)


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
            9,
            "exit code 9: NVIDIA-SMI has",
        ),
        ("Failed to initialize NVML: Driver/library version mismatch\n", 18, "Driver/library version mismatch"),
        ("No devices were found\n", 6, "No devices were found"),
        ("No devices were found\n", 0, "lists no device"),
        ("<html><body>502 Bad Gateway</body></html>\n", 0, "lists no device"),
        ("", 255, "no message"),
        ("\x1b[31mred\n", 1, "?[31mred"),
    ],
)
def test_a_tool_that_gives_no_device(machine: Machine, text: str, code: int, told: str) -> None:
    machine.answers("nvidia-smi", text, code)
    found = machine.look()
    assert found.gpus == []
    assert told in found.notes[0]


def test_a_tool_that_hangs_is_stopped_with_its_children(machine: Machine) -> None:
    """A child of the tool keeps the other end of a pipe open as long as it lives."""
    fifo = machine.root / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    machine.tool("nvidia-smi", f"({ECHO} x; exec {SLEEP} 1000) > '{fifo}' & wait")
    with pytest.raises(ToolFailure, match=r"nvidia-smi gave no answer within 2 s and was stopped"):
        run_tool([str(machine.tools / "nvidia-smi")], 2)
    if os.read(end, 1):  # else it was stopped before the child began
        waiting = select.poll()
        waiting.register(end, 0)  # hang-up alone
        assert waiting.poll(60_000), "the child lives on"
    os.close(end)


def test_the_time_of_all_tools_is_limited(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.tool("nvidia-smi", f"{SLEEP} 1000")
    monkeypatch.setenv("EXLLAMA_PROBE_TIMEOUT", "1")
    monkeypatch.setenv("PATH", f"{machine.tools}:{os.defpath}")
    assert "nvidia-smi gave no answer within 0.333333 s" in machine.look().notes[0]


def test_a_tool_that_talks_without_end_costs_no_memory(machine: Machine) -> None:
    machine.tool("chatter", f"exec {HEAD} -c 20000000 /dev/zero")
    assert len(run_tool([str(machine.tools / "chatter")], 60)) == MAX_OUTPUT


def test_a_card_without_its_driver(machine: Machine) -> None:
    write(
        machine.root,
        {"sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n", "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n"},
    )
    found = machine.look()
    assert any("nvidia: 1 on the PCI bus, 0 listed: nvidia-smi is not on PATH" in note for note in found.notes)
    assert any("nvml: python" in note and "pynvml" in note for note in found.notes)  # asked, since the card is there


NVML = """
class NVMLError(Exception): pass
class Memory: total, free = 17179869184, 16106127360
class Place: busId = b"00000000:01:00.0"
def nvmlInit(): print("a library that prints")
def nvmlSystemGetDriverVersion(): return b"470.57.02"
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetCudaComputeCapability(handle): return (8, 9)
def nvmlDeviceGetMigMode(handle): raise NVMLError("Not Supported")
def nvmlDeviceGetUUID(handle): return "GPU-1234"
def nvmlDeviceGetPciInfo(handle): return Place
def nvmlDeviceGetName(handle): return "NVIDIA RTX 4080"
"""


def test_nvml_is_asked_where_the_tool_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library: nothing here says that the real one answers so."""
    write(machine.root, {"dev/nvidiactl": ""})
    write(machine.tools, {"modules/pynvml.py": NVML})
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(machine.tools / "modules"), os.environ.get("PYTHONPATH", "")])
    )
    (device,) = machine.look().gpus
    assert device.gpu is not None
    assert (device.gpu.uuid, device.gpu.arch, device.gpu.driver) == ("GPU-1234", "sm_89", "470.57.02")
    assert (device.total, device.free) == (16 * GIB, 15 * GIB)


def test_rocm_smi_and_sysfs_say_it_together(machine: Machine) -> None:
    import json

    machine.answers("rocm-smi", json.dumps(ROCM_SMI))
    write(machine.root, card(1, "0000:03:00.0", 21458059264, 15 * GIB) | {"dev/kfd": ""})
    (device,) = machine.look().gpus
    assert device.gpu is not None
    assert (device.name, device.gpu.sources) == ("hip:0", ("rocm-smi", "sysfs"))


def test_unified_memory_is_the_host_s(machine: Machine) -> None:
    machine.answers("nvidia-smi", row(name="NVIDIA GB10", memory="[N/A], [N/A], [N/A]", capability="12.1"))
    (device,) = machine.look().gpus
    assert (device.total, device.free) == (16 * GIB, 8 * GIB)


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (Gpu("nvidia", 0, arch="sm_61", total=8 * GIB), "compute capability 6.1, and 7.5"),
        (Gpu("nvidia", 0, arch="sm_120", total=8 * GIB), ""),
        (Gpu("nvidia", 0, arch="sm_90"), "no source tells"),
        (Gpu("nvidia", 0, arch="sm_75", total=400 << 20), "400 MiB of memory, and a driver's context alone takes 457"),
        (Gpu("amd", 0, arch="gfx803", total=8 * GIB), "target gfx803"),
        (Gpu("amd", 0, arch="gfx90a", total=8 * GIB), ""),
    ],
)
def test_gpus_that_cannot_be_used(gpu: Gpu, reason: str) -> None:
    assert reason in unusable(gpu)
    assert bool(unusable(gpu)) == bool(reason)


def test_a_gpu_that_is_not_used_keeps_its_number_and_says_why(machine: Machine) -> None:
    machine.answers("nvidia-smi", row(0, "GTX 1080", capability="6.1") + row(1))
    found = machine.look()
    assert [device.name for device in found.gpus] == ["cuda:1"]
    with pytest.raises(UsageError, match=r"'cuda': GTX 1080: compute capability 6\.1.*this machine has cuda:1, cpu"):
        find(found, "cuda")
    with pytest.raises(UsageError, match="there is no such device"):
        find(found, "hip:3")
    assert find(found, "cuda:1").model == "NVIDIA GeForce RTX 3090"


def test_free_memory_is_read_again_or_kept(machine: Machine) -> None:
    machine.answers("nvidia-smi", row(memory="24576, 576, 24000"))
    found = machine.look()
    machine.answers("nvidia-smi", row(memory="24576, 4576, 20000"))
    assert refreshed(found, machine.root).gpus[0].free == 20000 << 20
    machine.answers("nvidia-smi", "NVIDIA-SMI has failed", 9)
    kept = refreshed(found, machine.root)
    assert kept.gpus == found.gpus
    assert "unable to refresh free memory, using old values: cuda:0" in kept.notes


def emulated(count: int) -> Discovery:
    gpus = [Device(f"emu:{i}", "emulated GPU", GIB, GIB, gpu=Gpu("emulated", i)) for i in range(count)]
    return Discovery([*gpus, Device("cpu", "x", GIB, GIB, cores=1)])


FATES = """
case $0 in
emu:1) kill -ABRT $$;;
emu:2) exec sleep 1000;;
emu:3) echo "the result is off by 1.0e+00" >&2; exit 1;;
esac
"""


def test_devices_that_crash_hang_or_compute_wrong_are_dropped_with_the_reason() -> None:
    found = validated(emulated(4), 5.0, ["sh", "-c", FATES])
    assert [device.name for device in found.gpus] == ["emu:0"]
    assert "signal 6" in found.dropped["emu:1"]
    assert "gave no answer within 5 s" in found.dropped["emu:2"]
    assert "off by" in found.dropped["emu:3"]
    assert any(note.startswith("filtering device which didn't fully initialize: emu:1") for note in found.notes)


def test_a_trial_computes_on_the_device_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXLLAMA_EMU_DEVICES", "2x8MiB")
    found = validated(emulated(3), 300.0)
    assert [device.name for device in found.gpus] == ["emu:0", "emu:1"]
    assert "there is no emu:2: 2 emu devices were found" in found.dropped["emu:2"]
    assert largest_error("cpu") < 1e-2


def test_the_doctor_tells_a_person_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXLLAMA_EMU_DEVICES", "8MiB,4GiB")
    report = doctor.inspect()
    assert set(report) >= {"gpu_stats", "models_loaded", "inference_test"}
    assert report["models_loaded"] == 0
    assert report["inference_test"]["status"] == "success"
    assert [gpu["memory_total"] for gpu in report["gpu_stats"]["gpus"]] == [8 << 20, 4 * GIB]
    text = doctor.describe(report)
    assert "found 2 emulated devices" in text
    assert "Device 1: emulated GPU, emu: 4.0 GiB free of 4.0 GiB, computes as it should" in text


@pytest.mark.parametrize("text", ["x", "2x", "0x1GiB", "1GiB,", "1 GiB", "1TiB"])
def test_emulated_devices_that_mean_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("EXLLAMA_EMU_DEVICES", text)
    with pytest.raises(UsageError, match="EXLLAMA_EMU_DEVICES is"):
        machine.look()
