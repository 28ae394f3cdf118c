"""Which devices there are, and why others are not used. Never initialises a driver, never raises."""

from __future__ import annotations

from dataclasses import dataclass, field

from exllama.devices.cpu import discover_cpu
from exllama.devices.device import Device

NO_GPU_BACKEND = "no GPU backend in this build: GPUs are neither looked for nor used, everything runs on the CPU"


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
    return Discovery(devices=[discover_cpu()], notes=[NO_GPU_BACKEND])
