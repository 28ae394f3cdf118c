"""NVIDIA GPUs out of the text of nvidia-smi, and Jetsons out of files. Pure functions of text.

Fields and their habits: `nvidia-smi --help-query-gpu`, NVIDIA's MIG user guide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

from exllama.devices.device import Gpu
from exllama.devices.numbers import pci_id, size, whole_number

# In this order, so that a name with commas stands between fields that have none. Old drivers lack the last two.
FIELDS = (
    "index", "uuid", "pci.bus_id", "name", "memory.total", "memory.used", "memory.free", "driver_version",
    "compute_cap", "mig.mode.current",
)  # fmt: skip
_BEFORE_NAME = 3
_UNKNOWN = re.compile(r"\[?(n/a|not supported|unknown error|insufficient permissions|gpu requires reset)\]?", re.I)
# The three numbers differ by what the driver keeps for itself. More means that they were read wrong.
_RESERVED_BYTES = 1 << 30
_INTEGRATED = ("gb10", "orin", "xavier", "thor", "tegra", "jetson", "n1x")
_TEGRA_ARCHITECTURES = {"tegra194": "sm_72", "tegra234": "sm_87"}


def parse_query(text: str, fields: Sequence[str] = FIELDS) -> list[Gpu]:
    """Rows of `nvidia-smi --query-gpu=FIELDS --format=csv,noheader,nounits`; fields: FIELDS or a beginning of it.

    Lines that are no such row are left out: HTML, errors and warnings give no GPU.
    """
    found = []
    behind = len(fields) - _BEFORE_NAME - 1
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) < len(fields) or whole_number(parts[0]) is None:
            continue
        name = ", ".join(parts[_BEFORE_NAME : len(parts) - behind])
        values = dict(zip(fields[_BEFORE_NAME + 1 :], parts[len(parts) - behind :], strict=True))
        total, free = _memory(*(values.get(f"memory.{key}", "") for key in ("total", "used", "free")))
        found.append(
            Gpu(
                vendor="nvidia", index=int(parts[0]), uuid=_known(parts[1]), pci=pci_id(parts[2]), name=_known(name),
                arch=_architecture(values.get("compute_cap", "")), total=total, free=free,
                driver=_known(values.get("driver_version", "")), integrated=_is_integrated(name),
                partitioned=values.get("mig.mode.current", "").lower() == "enabled", sources=("nvidia-smi",),
            )
        )  # fmt: skip
    return [gpu for gpu in found if gpu.uuid or gpu.pci]


def parse_list(text: str) -> dict[str, list[tuple[str, str]]]:
    """`nvidia-smi -L`: per UUID of a GPU, the (name, UUID) of its MIG devices in order."""
    found: dict[str, list[tuple[str, str]]] = {}
    parts: list[tuple[str, str]] = []
    for line in text.splitlines():
        row = re.fullmatch(r"\s*(GPU \d+:|MIG) (.*?)\s*(?:Device\s+\d+)?:?\s*\(UUID: ([\w/-]+)\)\s*", line)
        if row is None:
            continue
        if row[1] == "MIG":
            parts.append((row[2], row[3]))
        else:
            parts = found.setdefault(row[3], [])
    return found


def parse_xml(text: str) -> list[Gpu]:
    """`nvidia-smi -q -x`, MIG devices included (each behind its GPU, without a UUID: parse_list has those)."""
    begin = text.find("<nvidia_smi_log")
    if begin < 0 or "<!ENTITY" in text:
        return []
    try:
        log = ElementTree.fromstring(text[begin:])
    except ElementTree.ParseError:
        return []
    found = []
    for index, node in enumerate(log.iter("gpu")):
        name = node.findtext("product_name", "")
        total, free = _xml_memory(node)
        gpu = Gpu(
            vendor="nvidia", index=index, uuid=_known(node.findtext("uuid", "")), pci=pci_id(node.get("id", "")),
            name=_known(name), total=total, free=free, driver=_known(log.findtext("driver_version", "")),
            integrated=_is_integrated(name), partitioned=node.findtext("mig_mode/current_mig", "").lower() == "enabled",
            sources=("nvidia-smi -q",),
        )  # fmt: skip
        found.append(gpu)
        for part in node.iterfind("mig_devices/mig_device"):
            total, free = _xml_memory(part)
            found.append(replace(gpu, uuid="", total=total, free=free, partitioned=False, parent=gpu.uuid))
    return found


def name_parts(gpus: Sequence[Gpu], names: dict[str, list[tuple[str, str]]]) -> list[Gpu]:
    """The MIG devices of parse_xml with names and UUIDs of parse_list; those that it does not list are left out."""
    waiting = {uuid: list(parts) for uuid, parts in names.items()}
    found = []
    for gpu in gpus:
        if gpu.parent and waiting.get(gpu.parent):
            profile, uuid = waiting[gpu.parent].pop(0)
            found.append(replace(gpu, uuid=uuid, name=f"{gpu.name} MIG {profile}"))
    return found


def parse_jetson(release: str, compatible: str, memory: tuple[int, int], jetpack: str = "") -> Gpu | None:
    """The GPU of a Jetson. release: /etc/nv_tegra_release; compatible: /proc/device-tree/compatible.

    memory: (total, available) of the host, which it shares. jetpack: JETSON_JETPACK, as in "6.1".
    """
    version = jetpack.split(".")[0] or {"35": "5", "36": "6"}.get((re.findall(r" R(\d+) ", release) or [""])[0], "")
    chips = re.findall(r"tegra\d+", compatible)
    if not version and not chips:
        return None
    arch = _TEGRA_ARCHITECTURES.get(chips[0], "") if chips else ""
    return Gpu(
        vendor="nvidia", index=0, name=f"Jetson {chips[0] if chips else ''}".strip(), arch=arch, total=memory[0],
        free=memory[1], driver=f"JetPack {version}" if version else "", integrated=True, sources=("device tree",),
    )  # fmt: skip


def _xml_memory(node: ElementTree.Element) -> tuple[int | None, int | None]:
    return _memory(*(node.findtext(f"fb_memory_usage/{key}", "") for key in ("total", "used", "free")))


def _memory(total: str, used: str, free: str) -> tuple[int | None, int | None]:
    """(total, free), both None when the three numbers contradict each other."""
    sizes = [size(text, "MiB") for text in (total, used, free)]
    whole, taken, left = sizes
    if whole and taken is not None and left is not None:
        gap, tolerated = abs(whole - taken - left), max(min(_RESERVED_BYTES, whole // 4), whole // 20)
        if gap > tolerated or left > whole:
            return None, None
    return whole, left


def _known(text: str) -> str:
    text = text.strip()
    return "" if _UNKNOWN.fullmatch(text) else text


def _architecture(capability: str) -> str:
    return f"sm_{capability.replace('.', '')}" if re.fullmatch(r"\d{1,2}\.\d", capability) else ""


def _is_integrated(name: str) -> bool:
    return any(word in name.lower() for word in _INTEGRATED)
