"""Numbers as tools print them: with units, thousands separators of any country, or words for "unknown"."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "kib": 1 << 10, "mb": 1 << 20, "mib": 1 << 20, "gb": 1 << 30, "gib": 1 << 30}
_GAPS = "\\s\u00a0\u202f'\u2019"
_NUMBER = re.compile(rf"(?P<whole>\d+|\d{{1,3}}([{_GAPS}.,]\d{{3}})+)([.,](?P<part>\d{{1,2}}))?\s*(?P<unit>[A-Za-z]*)")
_MOST = 1 << 50


def whole_number(text: object) -> int | None:
    """A count; None for anything else."""
    found = str(text).strip()
    return int(found) if found.isdecimal() and len(found) < 20 else None


def size(text: object, unit: str = "") -> int | None:
    """Bytes of "24576 MiB", "24.576", "24 576 MiB"; unit: of a bare number. None for [N/A], errors and nonsense.

    AMD writes MB for what are binary megabytes.
    """
    found = _NUMBER.fullmatch(str(text).strip())
    if found is None or len(found["whole"]) > 24:
        return None
    factor = _UNITS.get((found["unit"] or unit).lower())
    if factor is None:
        return None
    whole, part = re.sub(r"\D", "", found["whole"]), found["part"] or ""
    value = int(whole + part) * factor // 10 ** len(part)
    return value if value < _MOST else None


def pci_id(text: str) -> str:
    """`0000:3B:00.0` and `00000000:3b:00.0` are one: eight digits of domain, lower case. "" for anything else."""
    found = re.fullmatch(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", text.strip().lower())
    return f"{int(found[1] or '0', 16):08x}:{found[2]}:{found[3]}.{found[4]}" if found else ""
