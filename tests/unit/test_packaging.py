"""What is installed is what is here, every import is declared, and a missing tool is named."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.unit.tree import ROOT, imports, product, sources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
IMPORT_NAMES = {"huggingface_hub": "huggingface_hub", "llama-cpp-python": "llama_cpp", "nvidia-ml-py": "pynvml"}


def requirement_names(requirements: list[str]) -> set[str]:
    names = {requirement.split(">=")[0].split("==")[0].split("[")[0].strip() for requirement in requirements}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def third_party(folders: tuple[str, ...]) -> set[str]:
    named = {module.split(".")[0] for source in sources(*folders) for module, _ in imports(source)}
    ours = {"exllama", "exllama_ext", "conversion", "tests", "benchmarks", "docs", "tomllib"}  # Python 3.10 has tomli
    return named - set(sys.stdlib_module_names) - ours


def test_every_package_is_listed() -> None:
    listed = next(
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES"
    )
    folders = {source.path.parent for source in [*product(), *sources("exllama_ext")]}
    present = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    present = {f"exllama.{name}" if name.split(".")[0] == "conversion" else name for name in present}
    assert sorted(listed) == listed
    assert set(listed) == present
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_sdist_holds_the_kernels() -> None:
    assert "graft kernels" in (ROOT / "MANIFEST.in").read_text(encoding="utf-8")


def test_torch_is_no_build_requirement_and_not_forced_on_users() -> None:
    assert not any("torch" in name for name in PROJECT["build-system"]["requires"])
    assert not any("torch" in name for name in PROJECT["project"]["dependencies"])
    assert PROJECT["project"]["optional-dependencies"]["torch"] == ["torch>=2.6"]


def test_every_import_is_declared_and_every_dependency_is_used() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    runtime = requirement_names(PROJECT["project"]["dependencies"])
    optional = requirement_names(extras["torch"] + extras["hf"] + extras["iq"] + extras["grammar"] + extras["nvml"])
    used = third_party(("exllama", "conversion"))
    assert used <= runtime | optional
    assert runtime <= used, "declared but never imported"
    allowed = runtime | optional | requirement_names(extras["dev"] + extras["peers"])
    assert third_party(("tests",)) <= allowed


def test_no_upper_pins_at_run_time() -> None:
    assert not any(mark in name for name in PROJECT["project"]["dependencies"] for mark in ("<", "==", "~="))


def empty_path(tmp_path: Path, *tools: str) -> dict[str, str]:
    """An environment whose PATH holds just the tools named."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in tools:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return {"PATH": str(folder), "HOME": str(tmp_path)}


def fresh_tree(tmp_path: Path) -> Path:
    """The files that the bootstrap reads, in a folder without an environment."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in ("bootstrap.py", "pyproject.toml", "setup.py", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_missing_compiler_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    tree = fresh_tree(tmp_path)
    done = subprocess.run(
        [sys.executable, "bootstrap.py", "run"], cwd=tree, env=empty_path(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no C++ compiler found" in done.stderr
    assert "apt-get install g++" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tree / ".venv").exists()
    assert done.stdout == ""


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_missing_venv_module_is_named(tmp_path: Path, module: str) -> None:
    tree = fresh_tree(tmp_path)
    hide = (
        "import importlib.util as u, runpy, sys; real = u.find_spec;"
        f"u.find_spec = lambda name, *rest: None if name == {module!r} else real(name, *rest);"
        "sys.argv = ['bootstrap.py', 'run']; runpy.run_path('bootstrap.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", hide], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has no venv module" in done.stderr
    assert "-venv" in done.stderr


@pytest.mark.parametrize("kind", ["run", "dev"])
def test_a_full_disk_is_told_before_anything_is_made(tmp_path: Path, kind: str) -> None:
    tree = fresh_tree(tmp_path)
    full = (
        "import runpy, shutil, sys; from types import SimpleNamespace;"
        "shutil.disk_usage = lambda path: SimpleNamespace(free=30 << 20);"
        f"sys.argv = ['bootstrap.py', {kind!r}]; runpy.run_path('bootstrap.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", full], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1
    assert "30 MiB free" in done.stderr
    assert "free some space" in done.stderr
    assert not (tree / ".venv").exists()


@pytest.mark.skipif(os.name == "nt", reason="sizes of files are limited by POSIX means")
def test_a_disk_that_fills_up_gives_a_sentence(tmp_path: Path) -> None:
    """No file may grow beyond 20 kB, so making the environment fails in the middle."""
    tree = fresh_tree(tmp_path)
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
    limited += "sys.argv = ['bootstrap.py', 'run']; runpy.run_path('bootstrap.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", limited], cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "a full disk" in done.stderr.splitlines()[-1] or "free some space" in done.stderr.splitlines()[-1]
    assert not (tree / ".venv" / "stamp-run").exists()


@pytest.mark.skipif(os.name == "nt", reason="make is the POSIX way in")
def test_make_names_a_missing_python(tmp_path: Path) -> None:
    tree = fresh_tree(tmp_path)
    env = empty_path(tmp_path, "make", "sh", "find")
    done = subprocess.run(["make", "chat"], cwd=tree, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert "python3 is not on PATH" in done.stderr
    assert done.stdout == ""


def test_make_targets_are_short() -> None:
    recipe = 0
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        recipe = recipe + 1 if line.startswith("\t") else 0
        assert recipe <= 3, line
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in ci if line.startswith("make")] == ["make test </dev/null"]


def test_a_source_distribution_has_all_that_a_build_needs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("exllama", "exllama_ext", "conversion", "kernels"):
        shutil.copytree(ROOT / name, tree / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"):
        shutil.copy(ROOT / name, tree / name)
    shutil.copy(ROOT / "bootstrap.py", tree)
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    made = {name for name in wanted if name.startswith("exllama.egg-info")}
    assert wanted - made - held == set()


@pytest.mark.parametrize("words", ["-c|from exllama import Generator", "-m|exllama.chat", "-m|exllama.bench"])
def test_a_missing_torch_is_named(tmp_path: Path, words: str) -> None:
    hide = "import sys, importlib.machinery as m\nreal = m.PathFinder.find_spec\n"
    hide += "m.PathFinder.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest)\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, *words.split("|")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "exllama needs PyTorch" in last
    assert "pip install torch==2.13.0" in last
    assert done.stderr.count("\n") == 1 or words.startswith("-c")  # a command line says no more
