"""AMD GPUs out of the JSON of rocm-smi and amd-smi, and out of sysfs. Pure functions of text and recorded trees."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exllama.devices.device import Gpu
from exllama.devices.numbers import pci_id, size, whole_number

VENDOR = "0x1002"


def parse_rocm_smi(text: str) -> list[Gpu]:
    """`rocm-smi --showproductname --showmeminfo vram gtt --showuniqueid --showbus --json`, of any release."""
    found = []
    report = _json(text)
    if not isinstance(report, Mapping):
        return []
    for key, value in report.items():
        number = re.fullmatch(r"card(\d{1,4})", str(key))
        if number is None or not isinstance(value, Mapping):
            continue
        card = {str(name).lower(): str(content) for name, content in value.items()}
        total = size(card.get("vram total memory (b)", ""))
        used = size(card.get("vram total used memory (b)", card.get("vram used memory (b)", "")))
        name = card.get("card series") or card.get("card model") or card.get("device name") or ""
        found.append(
            Gpu(
                vendor="amd", index=int(number[1]), uuid=_unique(card.get("unique id", "")),
                pci=pci_id(card.get("pci bus", "")), name=name if name != "N/A" else "",
                arch=_target(card.get("gfx version", "")), total=total, free=_left(total, used), sources=("rocm-smi",),
            )
        )  # fmt: skip
    return found


def parse_amd_smi(memory: str, static: str = "", listing: str = "") -> list[Gpu]:
    """`amd-smi metric --mem-usage --json`, with names of `amd-smi static --json` and ids of `amd-smi list --json`."""
    names, ids = _by_number(static), _by_number(listing)
    found = []
    for number, entry in _by_number(memory).items():
        usage = _inside(entry, "mem_usage")
        total, free = _amount(usage.get("total_vram")), _amount(usage.get("free_vram"))
        asic, own = _inside(names.get(number, {}), "asic"), ids.get(number, {})
        found.append(
            Gpu(
                vendor="amd", index=number, pci=pci_id(str(own.get("bdf", ""))),
                uuid=_unique(str(asic.get("asic_serial", ""))), name=str(asic.get("market_name", "")),
                arch=_target(str(asic.get("target_graphics_version", ""))), total=total,
                free=_left(total, _amount(usage.get("used_vram"))) if free is None else free, sources=("amd-smi",),
            )
        )  # fmt: skip
    return found


def read_sysfs(root: Path) -> list[Gpu]:
    """AMD cards of /sys/class/drm, with names of targets from the topology of KFD. root stands for `/`."""
    targets = _kfd_targets(root)
    found = []
    for folder in sorted(root.glob("sys/class/drm/card*"), key=lambda path: path.name):
        number = re.fullmatch(r"card(\d{1,4})", folder.name)
        device = folder / "device"
        total = size(_text(device / "mem_info_vram_total"))
        if number is None or _text(device / "vendor") != VENDOR or not total:
            continue
        pci = pci_id((re.findall(r"^PCI_SLOT_NAME=(.*)$", _text(device / "uevent"), re.M) or [""])[0])
        shared, used = size(_text(device / "mem_info_gtt_total")), size(_text(device / "mem_info_vram_used"))
        arch = targets.get(pci, "")
        found.append(
            Gpu(
                vendor="amd", index=int(number[1]), uuid=_unique(_text(device / "unique_id")), pci=pci, arch=arch,
                total=total, free=_left(total, used), integrated=_is_integrated(arch, total, shared),
                name=_text(device / "product_name"), sources=("sysfs",),
            )
        )  # fmt: skip
    return found


def missing_driver(root: Path) -> str:
    """Why ROCm cannot work on a machine with an AMD card; "" when nothing speaks against it."""
    kfd = root / "dev/kfd"
    if not kfd.exists():
        return (
            "/dev/kfd is not there: the amdgpu driver is missing, or the container was not given it (--device /dev/kfd)"
        )
    try:
        with kfd.open("rb"):
            return ""
    except PermissionError:
        return "/dev/kfd may not be opened: add the user to the groups render and video"
    except OSError as error:
        return f"/dev/kfd cannot be opened: {error.strerror}"


def _kfd_targets(root: Path) -> dict[str, str]:
    """PCI id -> "gfx1100" from the compute topology."""
    found = {}
    for path in root.glob("sys/class/kfd/kfd/topology/nodes/*/properties"):
        values = {}
        for line in _text(path).splitlines():
            key, _, value = line.partition(" ")
            values[key] = whole_number(value) or 0
        if values.get("simd_count") and values.get("gfx_target_version"):
            place, domain = values.get("location_id", 0), values.get("domain", 0)
            pci = f"{domain:x}:{place >> 8 & 255:02x}:{place >> 3 & 31:02x}.{place & 7}"
            found[pci_id(pci)] = _decimal_target(values["gfx_target_version"])
    return found


def _decimal_target(version: int) -> str:
    """110000 -> gfx1100, 90010 -> gfx90a: two decimal digits each for minor and step, the step in hex."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _is_integrated(arch: str, total: int, shared: int | None) -> bool:
    """An APU: its carve-out is smaller than what it may borrow, or its target is known to be one."""
    return arch in ("gfx902", "gfx90c", "gfx1035", "gfx1036", "gfx1103", "gfx1150", "gfx1151") or (
        shared is not None and total <= 4 << 30 and shared > 2 * total
    )


def _by_number(text: str) -> dict[int, dict[str, Any]]:
    """Entries of an amd-smi report: a list, or {"gpu_data": [...]} in newer releases."""
    report = _json(text)
    entries = report.get("gpu_data", []) if isinstance(report, dict) else report
    return dict(_numbered(entries if isinstance(entries, list) else []))


def _numbered(entries: list[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for entry in entries:
        number = whole_number(entry.get("gpu", "")) if isinstance(entry, dict) else None
        if number is not None:
            yield number, entry


def _inside(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = entry.get(key)
    return found if isinstance(found, Mapping) else {}


def _amount(entry: object) -> int | None:
    """{"value": 24560, "unit": "MB"}, the same with a string, or a bare number of MB."""
    if isinstance(entry, Mapping):
        return size(entry.get("value", ""), str(entry.get("unit", "MB")))
    return size(entry, "MB")


def _left(total: int | None, used: int | None) -> int | None:
    return None if total is None or used is None or used > total else total - used


def _unique(text: str) -> str:
    """GPU-<16 hex digits>, as ROCR_VISIBLE_DEVICES takes it; "" for what is no unique id."""
    digits = text.strip().lower().removeprefix("0x")
    return f"GPU-{digits}" if re.fullmatch(r"[0-9a-f]{8,16}", digits) and int(digits, 16) else ""


def _target(text: str) -> str:
    found = re.match(r"gfx[0-9a-f]{3,5}", text.strip().lower())
    return found[0] if found else ""


def _json(text: str) -> Any:
    """The first JSON value of a text that may begin with warnings; None when there is none."""
    begins = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    for begin in sorted(begins):
        try:
            return json.JSONDecoder().raw_decode(text[begin:])[0]
        except (ValueError, RecursionError):
            continue
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
