"""Which devices there are, and why others are not used. Never initialises a driver, never raises."""

from __future__ import annotations

from dataclasses import dataclass, field

from exllama.devices.cpu import discover_cpu
from exllama.devices.device import Device

GPUS_BY_NAME = "GPUs are not looked for yet: name one to use it, as in --device cuda:0; all else runs on the CPU"


@dataclass(frozen=True)
class Discovery:
    """Devices in the order in which they would be filled, and what a user should know about the rest."""

    devices: list[Device]
    notes: list[str] = field(default_factory=list)

    @property
    def cpu(self) -> Device:
        return next(device for device in self.devices if device.name == "cpu")


def discover() -> Discovery:
    """Looks at the machine now; free memory is a snapshot."""
    return Discovery(devices=[discover_cpu()], notes=[GPUS_BY_NAME])
