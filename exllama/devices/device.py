"""A place where weights can lie and kernels can run, described without touching it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One device as discovery found it.

    name: what `device=` takes ("cpu"). total and free are bytes of memory that this process may use now; cores is the
    number of physical cores that it may run on, quota the CPU time it is granted per second (None: no limit).
    """

    name: str
    model: str
    total: int
    free: int
    cores: int
    logical_cores: int
    quota: float | None = None

    @property
    def threads(self) -> int:
        """Worker threads that pay: a physical core each, and no more than the granted time can feed."""
        return self.cores if self.quota is None else max(1, min(self.cores, round(self.quota)))
