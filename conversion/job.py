"""A conversion's folder: what is to be done, what is done already, and a lock against doing it twice at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from exllama.errors import ConversionError
from exllama.lock import exclusive

from .atomic import remove_parts, write_json

WORK = ".conversion"
_JOB, _LOCK = "job.json", "lock"


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a conversion, the source apart.

    bits: stored bits per weight over all linears but the head, everything counted. codebook: of EXL3, None for the
    format's own choice. calibration, recipe: files, None for the package's texts and for an allocation by measurement.
    rows, length: of the calibration. measured_rows: how many of them the measurement takes. verified_tokens: of text
    that no calibration sees. device: as torch names it.
    """

    format: str
    bits: float
    head_bits: float
    codebook: str | None = None
    calibration: Path | None = None
    recipe: Path | None = None
    rows: int = 128
    length: int = 512
    measured_rows: int = 8
    verified_tokens: int = 4096
    seed: int = 0
    device: str = "cpu"

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """What a job to be resumed must agree on: files count by their content."""
        values = asdict(self) | {name: _digest(getattr(self, name)) for name in ("calibration", "recipe")}
        return {"source": fingerprint, **values}


class Job:
    """An open output folder. work: the part of it that goes away in the end. Made by `open_job`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder / WORK

    def read(self, name: str) -> Any:
        """The JSON of a finished step, None when it is not there. What was written by `write` is whole."""
        path = self.work / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Records a finished step."""
        write_json(self.work / name, value)

    @property
    def linears(self) -> Path:
        """One file a quantized linear."""
        return self.work / "linears"


@contextmanager
def open_job(folder: Path, identity: dict[str, Any], resume: bool = False) -> Iterator[Job]:
    """Takes the folder, made if need be, and goes on with its job when that is the same one.

    resume: there must be one. Raises ConversionError when another process works in it, when it holds another job, or
    something that no conversion has written.
    """
    job = Job(folder)
    known = (job.work / _JOB).is_file()
    if resume and not known:
        raise ConversionError(f"{folder} holds no conversion to resume: leave out --resume to begin one")
    if not known and folder.exists() and any(path.name != WORK for path in folder.iterdir()):
        raise ConversionError(f"{folder} is not empty and holds no conversion: name another folder with -o")
    job.linears.mkdir(parents=True, exist_ok=True)
    with exclusive(job.work / _LOCK, lambda: _refuse(folder)):
        for place in (folder, job.work, job.linears):
            remove_parts(place)
        _check(job, identity)
        yield job


def _refuse(folder: Path) -> None:
    raise ConversionError(f"another process is converting into {folder}: wait for it, or name another folder with -o")


def _check(job: Job, identity: dict[str, Any]) -> None:
    found = job.read(_JOB)
    if found is None:
        job.write(_JOB, identity)
        return
    for name, value in identity.items():
        if found.get(name) != value:
            known = f"{job.folder} holds a conversion with {name} = {found.get(name)}, and {value} was asked for"
            raise ConversionError(f"{known}: ask for the same again to resume it, or name another folder with -o")


def _digest(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConversionError(f"{file} cannot be read: {error.strerror}") from error
