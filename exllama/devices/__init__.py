"""Devices: what the machine offers, found without loading a driver into this process."""

from __future__ import annotations

from exllama.devices.device import Device, Gpu
from exllama.devices.discovery import Discovery, discover

__all__ = ["Device", "Discovery", "Gpu", "discover"]
