"""The builds themselves: what is missing and what failed is told, and nothing is built twice."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from exllama_ext import toolchains
from exllama_ext.emulator_build import EmulatorBuild, build_emulator, gpu_sources
from exllama_ext.tools import BuildFailed
from tests.kernels.library import CACHE, SANITIZE, SOURCES, emulated

pytestmark = pytest.mark.skipif(bool(SANITIZE), reason="compilers are not run under a sanitizer")


def test_a_source_that_does_not_compile_is_shown_by_its_first_error(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text('#include "exl/portability.h"\nint f() { return no_such_name; }\nint g() { return 1 }\n')
    with pytest.raises(BuildFailed) as error:
        build_emulator(CACHE, EmulatorBuild("broken", [source]))
    first, *_ = str(error.value).splitlines()
    assert first.startswith("building libbroken.so failed: ")
    assert "broken.cu:2" in first
    assert "no_such_name" in first


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildFailed, match=r"no-such-compiler was not found: install a C\+\+ compiler"):
        build_emulator(tmp_path)


def test_missing_gpu_compilers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(toolchains, "TOOLS", tmp_path)
    monkeypatch.setattr(toolchains, "CUDA_ROOTS", ())
    with pytest.raises(BuildFailed, match="install the CUDA toolkit"):
        toolchains.find_cuda()
    with pytest.raises(BuildFailed, match=r"install ROCm, or on Debian 12 .*clang-19"):
        toolchains.find_rocm()


def test_a_library_is_built_once_and_again_after_a_change(tmp_path: Path) -> None:
    source = tmp_path / "answer.cu"
    text = '#include "exl/status.h"\nEXL_API int answer() { return 41; }\n'
    for answer in (41, 42):
        source.write_text(text.replace("41", str(answer)))
        library = build_emulator(CACHE, EmulatorBuild("answer", [source]))
        assert ctypes.CDLL(str(library)).answer() == answer
        stamp = library.stat().st_mtime_ns
        assert build_emulator(CACHE, EmulatorBuild("answer", [source])).stat().st_mtime_ns == stamp


def test_the_projects_library_has_all_sources_and_the_runtime() -> None:
    handle = ctypes.CDLL(str(emulated()))
    assert {path.parent.name for path in gpu_sources()}.isdisjoint({"cpu", "emulator"})
    assert (SOURCES / "scale.cu") not in gpu_sources()
    for name in ("exl_device_count", "exl_graph_launch", "exl_emulator_configure", "exl_last_error"):
        assert getattr(handle, name)
