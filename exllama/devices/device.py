"""A place where weights can lie and kernels can run, described without touching it."""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT_BYTES = 457 << 20  # what a driver's context, its modules and its heap take of a GPU's memory


@dataclass(frozen=True)
class Gpu:
    """What one source, or several that agree, say of a GPU.

    vendor: "nvidia", "amd" or "emulated". index: the tool's number, no ordinal of any process. uuid: as the tool writes
    it, or "". pci: `00000000:65:00.0`, lower case, or "". arch: "sm_86", "gfx1100". total, free: bytes, None where the
    source does not know. integrated: its memory is the host's. partitioned: MIG is on, so only its parts can be used;
    a part names its `parent` by UUID. sources: who said so.
    """

    vendor: str
    index: int
    uuid: str = ""
    pci: str = ""
    name: str = ""
    arch: str = ""
    total: int | None = None
    free: int | None = None
    driver: str = ""
    integrated: bool = False
    partitioned: bool = False
    parent: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Device:
    """One device as discovery found it.

    name: what `device=` takes ("cpu", "cuda:0"). total and free are bytes of memory that this process may use now;
    cores is the number of physical cores that it may run on, quota the CPU time it is granted per second (None: no
    limit). gpu: what is known of a GPU; None for the CPU.
    """

    name: str
    model: str
    total: int
    free: int
    cores: int = 0
    logical_cores: int = 0
    quota: float | None = None
    gpu: Gpu | None = None

    @property
    def threads(self) -> int:
        """Worker threads that pay: a physical core each, and no more than the granted time can feed."""
        return self.cores if self.quota is None else max(1, min(self.cores, round(self.quota)))

    @property
    def overhead(self) -> int:
        """Bytes of a GPU that its driver takes beside what is allocated."""
        return CONTEXT_BYTES if self.gpu is not None and self.gpu.vendor != "emulated" else 0
