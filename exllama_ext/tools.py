"""What every native build shares: finding tools, running ninja with a progress line, saying what failed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# done, total, what is built now
Progress = Callable[[int, int, str], None]


class BuildFailed(RuntimeError):
    """The compiler or a tool is missing or failed; the text says which and what to install."""


def find_tool(name: str, hint: str) -> str:
    """Path of a program on PATH or beside the Python that runs us. Raises BuildFailed with the hint."""
    beside = Path(sys.executable).parent / name  # ninja installed into the environment that runs us
    path = shutil.which(name) or (str(beside) if beside.exists() else None)
    if not path:
        raise BuildFailed(f"{name} was not found: {hint}")
    return path


def host_compiler() -> str:
    """The command of the C++ compiler: $CXX or g++."""
    wanted = os.environ.get("CXX", "").split() or ["g++"]
    path = find_tool(wanted[0], "install a C++ compiler (Debian: apt install g++) or set CXX")
    return " ".join([path, *wanted[1:]])


def version_of(command: str) -> str:
    """What a tool prints for --version; "" if it does not run."""
    try:
        return subprocess.run([*command.split(), "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""


def digest(files: Iterable[Path], *words: str) -> str:
    """A name for files' contents and words: 20 hexadecimal digits."""
    found = hashlib.sha256("\0".join(words).encode())
    for path in sorted(files):
        found.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:20]


def first_error(log: str) -> str:
    """The line of a compiler's log that says what is wrong."""
    lines = log.splitlines()
    return next(
        (line for line in lines if re.search(r"\berror\b|undefined reference", line)), lines[-1] if lines else ""
    )


def show_progress(done: int, total: int, what: str) -> None:
    """One line on stderr, overwritten on a terminal, silent elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r\x1b[Kbuilding {what}: {done} of {total}", end=end, file=sys.stderr, flush=True)


def write_ninja(
    folder: Path, compile_one: str, sources: Sequence[Path], target: str, link: str, also: Sequence[Path] = ()
) -> None:
    """A build.ninja with one object a source and one target.

    compile_one, link: commands with ninja's $in and $out; compile_one writes the headers that it read to $out.d.
    also: files that the link reads beside the objects.
    """
    lines = [
        "rule compile",
        f"  command = {compile_one}",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {link}",
    ]
    objects = [f"{source.parent.name}_{source.stem}.o" for source in sources]
    lines += [f"build {obj}: compile {source.resolve()}" for obj, source in zip(objects, sources, strict=True)]
    lines.append(f"build {target}: link {' '.join(objects)} | {' '.join(map(str, also))}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")


def publish(built: Path, library: Path) -> None:
    """Copies a built file to its place in one step, so that nobody opens half of it."""
    library.parent.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(".partial")
    shutil.copy2(built, partial)
    partial.replace(library)


def run_ninja(folder: Path, what: str, progress: Progress | None = None) -> None:
    """Runs the build.ninja of a folder. Raises BuildFailed with the first error and the end of the log."""
    ninja = find_tool("ninja", "pip install ninja")
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    process = subprocess.Popen(
        [ninja, "-C", str(folder), "-j", str(os.cpu_count() or 1)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    log = []
    assert process.stdout is not None
    for line in process.stdout:
        log.append(line)
        if progress and (match := re.match(r"\[(\d+)/(\d+)\]", line)):
            progress(int(match[1]), int(match[2]), what)
    if process.wait():
        text = "".join(log)
        raise BuildFailed(f"building {what} failed: {first_error(text)}\n{text[-4000:]}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as handle:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
