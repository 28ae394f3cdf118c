"""A GPU library as tests use it: device arrays, calls by name, statuses as exceptions.

`Library` speaks to any library with the C ABI of kernels/include/exl/runtime.h. Test kernels live in
tests/kernels/sources and export functions of pointers, 32-bit integers, floats and a stream that return a status.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exllama_ext.emulator_build import EmulatorBuild, build_emulator
from exllama_ext.gpu_build import GpuBuild, build_gpu, cuda_archs_here
from exllama_ext.tools import ROOT

SOURCES = Path(__file__).parent / "sources"
CACHE = ROOT / "build"
ORDERS = {"forward": 0, "reverse": 1, "random": 2}
# "emu", or in make gpu-check "cuda": where kernels are tested. What tests the emulator itself stays there.
BACKEND = os.environ.get("EXL_TEST_BACKEND", "emu")
# The sanitizer that this process runs under, set by tests/kernels/test_sanitizers.py for the process that it starts.
SANITIZE = os.environ.get("EXL_TEST_SANITIZE", "")


class KernelError(Exception):
    """A status other than ok."""

    def __init__(self, status: str, text: str, argument: str) -> None:
        self.status, self.text, self.argument = status, text, argument
        super().__init__(f"{status}: {text}")


class Options(ctypes.Structure):
    """exl_emulator_options."""

    _fields_ = (
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("workers", ctypes.c_int32),
        ("deferred", ctypes.c_int32),
    )


class DeviceInfo(ctypes.Structure):
    """exl_device_info."""

    _fields_ = (
        ("name", ctypes.c_char * 128),
        ("arch", ctypes.c_char * 32),
        ("total_bytes", ctypes.c_int64),
        ("free_bytes", ctypes.c_int64),
        ("processors", ctypes.c_int32),
        ("warp_size", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("compiled", ctypes.c_int32),
    )


@dataclass
class DeviceArray:
    """An array in device memory; freed with its library's `free`."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Library:
    """One loaded library and its device 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = ctypes.CDLL(str(path))
        for name in ("exl_last_error", "exl_last_error_argument", "exl_status_name", "exl_backend"):
            getattr(self.handle, name).restype = ctypes.c_char_p
        self.stream = ctypes.c_void_p()
        self.arrays: list[DeviceArray] = []

    @property
    def is_emulator(self) -> bool:
        return bool(self.handle.exl_backend() == b"emu")

    def status(self, name: str, *arguments: Any) -> int:
        """Calls an exported function; int becomes int32, float float32, an array its pointer, None a null pointer."""
        return int(getattr(self.handle, name)(*map(native, arguments)))

    def check(self, name: str, *arguments: Any) -> None:
        """The same; a status other than ok is a KernelError."""
        if status := self.status(name, *arguments):
            texts = self.handle.exl_last_error(), self.handle.exl_last_error_argument()
            raise KernelError(self.handle.exl_status_name(status).decode(), *(text.decode() for text in texts))

    def call(self, name: str, *arguments: Any) -> None:
        """Launches on the library's stream, which is the last argument of every launcher, and waits."""
        self.check(name, *arguments, self.stream)
        self.check("exl_stream_synchronize", self.stream)

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> DeviceArray:
        """Device memory full of NaN."""
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        array = DeviceArray(0, sizes, np.dtype(dtype))
        pointer = ctypes.c_void_p()
        self.check("exl_memory_allocate", 0, ctypes.c_int64(array.nbytes), ctypes.byref(pointer))
        array.pointer = pointer.value or 0
        self.arrays.append(array)
        if not self.is_emulator:
            count = ctypes.c_int64(array.nbytes)
            self.check("exl_memory_set", pointer, 0xFF, count, self.stream)
        return array

    def put(self, values: np.ndarray[Any, Any]) -> DeviceArray:
        """A copy of an array in device memory."""
        values = np.ascontiguousarray(values)
        array = self.empty(values.shape, values.dtype)
        self.copy(array.pointer, values.ctypes.data, array.nbytes)
        return array

    def get(self, array: DeviceArray) -> np.ndarray[Any, Any]:
        """A copy of device memory."""
        values = np.empty(array.shape, array.dtype)
        self.copy(values.ctypes.data, array.pointer, array.nbytes)
        return values

    def copy(self, to: int, source: int, count: int) -> None:
        self.check("exl_memory_copy", ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_int64(count), self.stream)
        self.check("exl_stream_synchronize", self.stream)

    def free(self) -> None:
        """Gives all arrays back."""
        for array in self.arrays:
            self.check("exl_memory_free", 0, array)
        self.arrays.clear()

    def configure(self, order: str = "forward", seed: int = 0, workers: int = 0, deferred: bool = False) -> None:
        """Sets how the emulator runs what comes; a GPU has its own ways."""
        if not self.is_emulator:
            return
        options = Options(ORDERS[order], seed, workers, int(deferred))
        self.check("exl_emulator_configure", ctypes.byref(options))

    def info(self, device: int = 0) -> DeviceInfo:
        info = DeviceInfo()
        self.check("exl_device_describe", device, ctypes.byref(info))
        return info


def native(value: Any) -> Any:
    """A Python value as the C functions take it."""
    if isinstance(value, DeviceArray):
        return ctypes.c_void_p(value.pointer)
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, bool | int | np.integer):
        return ctypes.c_int32(int(value))
    if isinstance(value, float):
        return ctypes.c_float(value)
    return value


def emulated(*sources: str, warp_size: int = 32, defines: Sequence[str] = (), sanitize: str = SANITIZE) -> Path:
    """The library of these files of tests/kernels/sources, or of the project's kernels if none is named."""
    paths = [SOURCES / f"{source}.cu" for source in sources]
    name = f"test_{'_'.join(sources)}" if sources else "exllama_emu"
    return build_emulator(CACHE, EmulatorBuild(name, paths, warp_size, sanitize, tuple(defines)))


def built(paths: Sequence[Path], name: str, warp_size: int, sanitize: str) -> Path:
    """The library of these sources for the backend under test."""
    if BACKEND == "emu":
        return build_emulator(CACHE, EmulatorBuild(name, paths, warp_size, sanitize))
    archs = cuda_archs_here() if BACKEND == "cuda" else []
    if BACKEND == "cuda" and not archs:
        pytest.exit("EXL_TEST_BACKEND=cuda: nvidia-smi names no GPU on this machine", returncode=2)
    return build_gpu(CACHE, GpuBuild(BACKEND, archs, paths, name if paths else ""))


def sources_library(*sources: str, warp_size: int = 32, sanitize: str = SANITIZE) -> Path:
    """As `emulated`, for the backend under test."""
    paths = [SOURCES / f"{source}.cu" for source in sources]
    return built(paths, f"test_{'_'.join(sources)}" if sources else "exllama_emu", warp_size, sanitize)


def kernels_library(*sources: str, warp_size: int = 32, sanitize: str = SANITIZE) -> Path:
    """The library of some of the project's kernels, named as "folder/file" of kernels/ without .cu."""
    paths = [ROOT / "kernels" / f"{source}.cu" for source in sources]
    return built(paths, "kernels_" + "_".join(path.stem for path in paths), warp_size, sanitize)
