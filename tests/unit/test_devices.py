"""CPU discovery on recorded trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from exllama.devices import Device, discover
from exllama.devices.cpu import cpu_quota, discover_cpu, memory, model_name, physical_cores

GIB = 1 << 30


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_this_machine() -> None:
    found = discover()
    assert found.cpu.cores >= 1
    assert found.cpu.logical_cores >= found.cpu.cores >= found.cpu.threads
    assert 0 < found.cpu.free <= found.cpu.total
    assert found.devices[-1] == found.cpu


def test_an_empty_tree_is_no_exception(tmp_path: Path) -> None:
    cpu = discover_cpu(tmp_path)
    assert (cpu.total, cpu.free, cpu.quota) == (0, 0, None)
    assert cpu.model


def test_siblings_count_once(tmp_path: Path) -> None:
    names = {f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}\n" for i in range(8)}
    tree(tmp_path, names)
    assert physical_cores(range(8), tmp_path) == 4
    assert physical_cores([0, 4], tmp_path) == 1
    assert physical_cores([0, 1, 5], tmp_path) == 2


def test_cgroup_v2_takes_the_tightest_of_the_chain(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 100 kB\nMemAvailable: 8388608 kB\n",
            "sys/fs/cgroup/a/b/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/a/b/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/a/b/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        },
    )
    assert cpu_quota(tmp_path) == 1.5
    assert memory(tmp_path) == (4 * GIB, 2 * GIB)


def test_cgroup_v1(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(GIB),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert cpu_quota(tmp_path) == 2.0
    assert memory(tmp_path) == (2 * GIB, GIB)


@pytest.mark.parametrize("text", ["", "max", "max 100000", "-1 100000", "nonsense here", "0 0", "1 2 3", "\xff"])
def test_nonsense_is_no_limit(tmp_path: Path, text: str) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/\n" + text, "sys/fs/cgroup/cpu.max": text, "proc/meminfo": text})
    assert cpu_quota(tmp_path) is None
    assert memory(tmp_path) == (0, 0)


def test_a_path_in_a_cgroup_file_cannot_leave_the_tree(tmp_path: Path) -> None:
    inside = tree(tmp_path / "root", {"proc/self/cgroup": "0::/../../secret\n"})
    tree(tmp_path, {"secret/cpu.max": "1 2"})
    assert cpu_quota(inside) is None


def test_model_name(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n"})
    assert model_name(tmp_path) == "Some CPU @ 3 GHz"


@pytest.mark.parametrize(("quota", "threads"), [(None, 8), (0.2, 1), (2.0, 2), (64.0, 8)])
def test_threads_follow_the_quota(quota: float | None, threads: int) -> None:
    assert Device("cpu", "x", 0, 0, cores=8, logical_cores=16, quota=quota).threads == threads
