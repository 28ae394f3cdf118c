"""Where a model comes from: a folder, a GGUF file, the Hugging Face hub, or the default that everyone can run."""

from __future__ import annotations

import re
from pathlib import Path

from exllama.errors import ExllamaError, SourceError
from exllama.loader.checkpoint import Checkpoint
from exllama.loader.default_model import fetch
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from exllama.loader.progress import Progress
from exllama.loader.safetensors_checkpoint import SafetensorsCheckpoint, refuse_pickles

SUPPORTED = "a folder with config.json and safetensors, a .gguf file, hf:org/name[@revision], or default"

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(rf"hf:(?P<repo>{_NAME}/{_NAME})(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,200}}))?")
_PART = re.compile(r".+-(\d{5})-of-\d{5}\.gguf")


def resolve(source: str | Path, progress: Progress | None = None) -> Path:
    """The folder or .gguf file that a source means, fetched if need be.

    Raises SourceError when there is none, UnsupportedModelError for a format that is never opened.
    """
    if source == "default":
        return fetch(progress=progress)
    if isinstance(source, str) and source.startswith("hf:"):
        return _choose(_fetch_from_hub(source))
    try:
        path = Path(source).expanduser()
        exists = str(source) != "" and path.exists()
    except (OSError, RuntimeError, ValueError):  # a name that no file system takes, an unknown user's home
        exists = False
    if not exists:
        raise SourceError(f"there is no model at {str(source)[:200]!r}; expected {SUPPORTED}")
    return _choose(path)


def open_checkpoint(source: str | Path, progress: Progress | None = None) -> Checkpoint:
    """The model that a source means, open; close it when done. Raises what `resolve` does, and FormatError."""
    path = resolve(source, progress)
    return SafetensorsCheckpoint(path) if path.is_dir() else GgufCheckpoint(path)


def _choose(path: Path) -> Path:
    """A folder that holds safetensors stays a folder; one that holds a single GGUF model means that."""
    if path.is_file():
        refuse_pickles([path])
        if path.suffix.lower() == ".safetensors":
            raise SourceError(f"{path} has no configuration of its own: give the folder that it is in")
        if path.suffix.lower() != ".gguf":
            raise SourceError(f"{path} is not a model; expected {SUPPORTED}")
        return path
    files = sorted(path.iterdir())
    if any(file.suffix == ".safetensors" for file in files):
        return path
    models = [file for file in files if file.suffix == ".gguf" and _is_first(file)]
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(file.name for file in models[:8])
        raise SourceError(f"{path} holds several GGUF models ({names}): name one of the files")
    refuse_pickles(files)
    raise SourceError(f"{path} holds neither safetensors nor GGUF files; expected {SUPPORTED}")


def choose_hub_files(source: str, names: list[str]) -> list[str]:
    """Which files of a repository make a model: safetensors with their JSON, else the only GGUF model.

    Raises SourceError for none or several, UnsupportedModelError for pickles alone.
    """
    top = sorted(name for name in names if "/" not in name)
    if any(name.endswith(".safetensors") for name in top):
        return [name for name in top if name.endswith((".safetensors", ".json", ".jinja"))]
    models = [name for name in top if name.endswith(".gguf")]
    firsts = [name for name in models if _is_first(Path(name))]
    if len(firsts) == 1:
        return models
    if firsts:
        found = ", ".join(firsts[:8])
        raise SourceError(f"{source} holds several GGUF models ({found}): fetch one of them, and give its path")
    refuse_pickles([Path(name) for name in top])
    raise SourceError(f"{source} holds neither safetensors nor GGUF files at its top level")


def _is_first(file: Path) -> bool:
    match = _PART.fullmatch(file.name)
    return match is None or int(match[1]) == 1


def _fetch_from_hub(source: str) -> Path:
    match = _HUB.fullmatch(source)
    if match is None or ".." in source:
        raise SourceError(f"{source!r} is no model of the hub; expected hf:org/name or hf:org/name@revision")
    try:
        import huggingface_hub
    except ImportError as error:
        raise SourceError("models of the hub are fetched with huggingface_hub: pip install 'exllama[hf]'") from error
    repo, revision = match["repo"], match["revision"]
    try:
        names = choose_hub_files(source, huggingface_hub.HfApi().list_repo_files(repo, revision=revision))
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=names))
    except ExllamaError:
        raise
    except Exception as error:  # the HTTP library below has a tree of errors of its own, and changes with versions
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        advice = "Check the name, the network, and for gated models your access token"
        raise SourceError(f"{source} could not be fetched: {reason}. {advice}") from error
