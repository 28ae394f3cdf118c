"""Who is asked for GPUs, in which order, and what to make of no answer."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from exllama import settings
from exllama.devices import amd, nvidia
from exllama.devices.ask import parse_answer
from exllama.devices.cpu import memory
from exllama.devices.device import Gpu
from exllama.devices.merge import merge
from exllama.devices.tools import ToolFailure, find_tool, run_tool
from exllama.errors import UsageError

TOOLS = 3  # that may each hang before the time of all is over
_PCI_VENDORS = {"0x10de": "nvidia", "0x1002": "amd"}
_EMU_SIZE = re.compile(r"(?:(\d{1,4})x)?(\d{1,7})(KiB|MiB|GiB)")
_SHIFT = {"KiB": 10, "MiB": 20, "GiB": 30}
_INVALID_FIELD = re.compile(r"not a valid field|invalid (combination|field)", re.I)


class Clock:
    """Shares the time of a phase among tools that are asked one after the other."""

    def __init__(self, seconds: float) -> None:
        self._share, self._end = seconds / TOOLS, time.monotonic() + seconds

    def run(self, command: Sequence[str]) -> str:
        """run_tool within what is left. Raises ToolFailure."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise ToolFailure(f"{Path(command[0]).name} was not asked: others took all the time")
        return run_tool(command, min(self._share, left))


@dataclass
class Answer:
    """GPUs of one vendor, and why each source that gave none did not."""

    gpus: list[Gpu] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def ask_nvidia(root: Path, clock: Clock) -> Answer:
    """nvidia-smi, and where it has no answer or no numbers NVML and torch, each in a process of its own."""
    answer = Answer()
    _try(answer, "nvidia-smi", lambda tool: _query(tool, clock))
    host, release = memory(root), _text(root / "etc/nv_tegra_release")
    jetson = nvidia.parse_jetson(release, _text(root / "proc/device-tree/compatible"), host, settings.jetpack())
    if jetson and not answer.gpus:
        answer.gpus = [jetson]
    present = on_pci_bus(root, "nvidia") or (root / "dev/nvidiactl").exists()
    for library in ("nvml", "torch") if present else ():
        if answer.gpus and all(gpu.total and gpu.free is not None for gpu in answer.gpus if not gpu.partitioned):
            break
        try:
            text = clock.run([sys.executable, "-m", "exllama.devices.ask", library])
            answer.gpus, notes = merge(answer.gpus, [gpu for gpu in parse_answer(text) if gpu.vendor == "nvidia"])
            answer.reasons += notes
        except (ToolFailure, ValueError) as failure:
            answer.reasons.append(f"{library}: {failure}")
    answer.gpus = [_shared(gpu, host) for gpu in answer.gpus]
    return answer


def ask_amd(root: Path, clock: Clock) -> Answer:
    """amd-smi or rocm-smi, and sysfs, which needs no tool; rows are put together by UUID and PCI id."""
    answer = Answer()
    _try(answer, "rocm-smi", lambda tool: _rocm_smi(tool, clock))
    if not answer.gpus:
        _try(answer, "amd-smi", lambda tool: _amd_smi(tool, clock))
    files = amd.read_sysfs(root)
    answer.gpus, notes = merge(answer.gpus, files)
    answer.reasons += notes
    if answer.gpus and (trouble := amd.missing_driver(root)):
        answer.reasons.append(trouble)
    return answer


def emulated(text: str) -> list[Gpu]:
    """The GPUs of EXLLAMA_EMU_DEVICES, as kernels/emulator reads it. Raises UsageError."""
    sizes: list[int] = []
    for part in text.split(","):
        found = _EMU_SIZE.fullmatch(part)
        if found is None or int(found[1] or 1) < 1 or int(found[2]) < 1:
            raise UsageError(f"EXLLAMA_EMU_DEVICES is {text!r}, expected a form like 2x512MiB or 512MiB,1GiB")
        sizes += [int(found[2]) << _SHIFT[found[3]]] * int(found[1] or 1)
    return [
        Gpu("emulated", index, name="emulated GPU", arch="emu", total=size, free=size, sources=("EXLLAMA_EMU_DEVICES",))
        for index, size in enumerate(sizes)
    ]


def on_pci_bus(root: Path, vendor: str) -> int:
    """Display and 3D controllers of a vendor on the PCI bus, driver or not."""
    count = 0
    for device in root.glob("sys/bus/pci/devices/*"):
        if _PCI_VENDORS.get(_text(device / "vendor")) == vendor:
            count += _text(device / "class").startswith(("0x0300", "0x0302", "0x0380"))
    return count


def _try(answer: Answer, name: str, ask: Callable[[str], Sequence[Gpu]]) -> None:
    tool = find_tool(name)
    if tool is None:
        answer.reasons.append(f"{name} is not on PATH")
        return
    try:
        answer.gpus = list(ask(tool))
    except ToolFailure as failure:
        answer.reasons.append(str(failure))
    else:
        if not answer.gpus:
            answer.reasons.append(f"{name} lists no device")


def _query(tool: str, clock: Clock) -> Sequence[Gpu]:
    """Drivers that lack a field refuse the whole query: asked again with fewer."""
    for count in range(len(nvidia.FIELDS), len(nvidia.FIELDS) - 3, -1):
        fields = nvidia.FIELDS[:count]
        try:
            text = clock.run([tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
        except ToolFailure as failure:
            if _INVALID_FIELD.search(str(failure)) and count > len(nvidia.FIELDS) - 2:
                continue
            raise
        if "No devices were found" in text:
            return []
        gpus = nvidia.parse_query(text, fields)
        return [*gpus, *_parts(tool, clock)] if any(gpu.partitioned for gpu in gpus) or not gpus else gpus
    return []


def _parts(tool: str, clock: Clock) -> Sequence[Gpu]:
    """MIG devices, and whole GPUs too where the table of nvidia-smi could not be read."""
    whole = nvidia.parse_xml(clock.run([tool, "-q", "-x"]))
    return nvidia.name_parts(whole, nvidia.parse_list(clock.run([tool, "-L"])))


def _rocm_smi(tool: str, clock: Clock) -> Sequence[Gpu]:
    """Old releases reject flags together: asked again with what matters most."""
    flags = ["--showproductname", "--showmeminfo", "vram", "gtt", "--showuniqueid", "--showbus", "--json"]
    for chosen in (flags, ["--showmeminfo", "vram", "--json"]):
        try:
            found = amd.parse_rocm_smi(clock.run([tool, *chosen]))
        except ToolFailure:
            if chosen is not flags:
                raise
            continue
        if found:
            return found
    return []


def _amd_smi(tool: str, clock: Clock) -> Sequence[Gpu]:
    memory_of = clock.run([tool, "metric", "--mem-usage", "--json"])
    names = clock.run([tool, "static", "--json"])
    return amd.parse_amd_smi(memory_of, names, clock.run([tool, "list", "--json"]))


def _shared(gpu: Gpu, host: tuple[int, int]) -> Gpu:
    """An integrated GPU has the host's memory: its own numbers are missing or too small."""
    if not gpu.integrated or gpu.vendor != "nvidia":
        return gpu
    return replace(gpu, total=host[0], free=min(gpu.free, host[1]) if gpu.free and gpu.total == host[0] else host[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
