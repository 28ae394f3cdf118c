"""A folder in Hugging Face form: config.json, safetensors (one file, or shards with an index), tokenizer files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from exllama.errors import FormatError, SourceError, UnsupportedModelError
from exllama.formats.bounded_json import read_object
from exllama.formats.registry import QUANT_METHODS
from exllama.formats.stored import StoredTensor
from exllama.loader.checkpoint import Checkpoint
from exllama.loader.safetensors_file import SafetensorsFile
from exllama.tokenizer.from_folder import read_folder_tokenizer
from exllama.tokenizer.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
MAX_INDEX = 12 << 20
MAX_SHARDS = 1024
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

# Where older files keep what is quantization_config elsewhere.
_QUANTIZER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}

_EXL2_PART = re.compile(r"output-(\d{5})-of-(\d{5})\.safetensors")
_SHARD = re.compile(r"[A-Za-z0-9._-]{1,200}\.safetensors")


class SafetensorsCheckpoint(Checkpoint):
    """An open model folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files: list[SafetensorsFile] = []
        self.config = read_object(_existing(folder, "config.json"))
        _find_quantization(folder, self.config)
        _check_quantization(folder, self.config)
        exl2 = _exl2_shards(folder, self.config)
        try:
            for path in exl2 or _shards(folder):
                self._files.append(SafetensorsFile(path))
            self.tensors: dict[str, StoredTensor] = self._join()
            if not exl2:
                _check_index(folder, self.tensors)
        except BaseException:
            self.close()
            raise

    def load_tokenizer(self) -> Tokenizer:
        """See Checkpoint."""
        return read_folder_tokenizer(self.path, self.config)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _join(self) -> dict[str, StoredTensor]:
        joined: dict[str, StoredTensor] = {}
        for file in self._files:
            for name, tensor in file.tensors.items():
                if name in joined:
                    found = f"a tensor of {joined[name].file.name} as well"
                    raise FormatError(file.path, name, found, "every name once")
                joined[name] = tensor
        return joined


def refuse_pickles(paths: list[Path]) -> None:
    """Pickled checkpoints can run any code when they are opened, so they are not."""
    pickles = sorted(path.name for path in paths if path.suffix.lower() in PICKLES)
    if pickles:
        message = f"{pickles[0]} is a pickled checkpoint, which can run any program when opened, and so never is"
        raise UnsupportedModelError(f"{message}. Get the model as safetensors or GGUF, or convert it where it is safe")


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise SourceError(f"{folder} has no {name}. Give the folder of a model in Hugging Face form, or a .gguf file")
    return folder / name


def _shards(folder: Path) -> list[Path]:
    """The weight files of a folder: those of the index, else the only one."""
    if (folder / INDEX).is_file():
        names = set(_weight_map(folder).values())
        if len(names) > MAX_SHARDS:
            raise FormatError(folder / INDEX, "weight_map", f"{len(names)} files", f"at most {MAX_SHARDS}")
        return [_existing(folder, name) for name in sorted(names)]
    found = sorted(folder.glob("*.safetensors"))
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if len(found) == 1:
        return found
    if not found:
        refuse_pickles(list(folder.iterdir()))
    listed = ", ".join(path.name for path in found[:8]) or "none"
    expected = f"model.safetensors, or shards with {INDEX}"
    raise SourceError(f"{folder}: found these safetensors files: {listed}; expected {expected}")


def _exl2_shards(folder: Path, config: dict[str, Any]) -> list[Path]:
    """The parts of an EXL2 model whose index is that of the model it was made from, as its writer often leaves it."""
    section = config.get("quantization_config")
    if not isinstance(section, dict) or section.get("quant_method") != "exl2":
        return []
    if (folder / "output.safetensors").is_file():
        return [folder / "output.safetensors"]
    parts = [_EXL2_PART.fullmatch(path.name) for path in folder.glob("output-*.safetensors")]
    total = max((int(part[2]) for part in parts if part), default=0)
    if total > MAX_SHARDS:
        raise FormatError(folder, "output files", f"{total} parts", f"at most {MAX_SHARDS}")
    return [_existing(folder, f"output-{number:05}-of-{total:05}.safetensors") for number in range(1, total + 1)]


def _weight_map(folder: Path) -> dict[str, str]:
    found: Any = read_object(folder / INDEX, MAX_INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise FormatError(folder / INDEX, "weight_map", found, "file names by tensor name")
    for tensor, file in found.items():
        if not isinstance(file, str) or _SHARD.fullmatch(file) is None:
            raise FormatError(folder / INDEX, f"weight_map.{tensor}", file, "a .safetensors file of this folder")
    return found


def _check_index(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    if not (folder / INDEX).is_file():
        return
    for name, file in _weight_map(folder).items():
        if name not in tensors or tensors[name].file.name != file:
            raise FormatError(folder / file, name, "no such tensor", "one, as the index says")


def _find_quantization(folder: Path, config: dict[str, Any]) -> None:
    for name, method in _QUANTIZER_FILES.items():
        if "quantization_config" not in config and (folder / name).is_file():
            config["quantization_config"] = {"quant_method": method} | read_object(folder / name)


def _check_quantization(folder: Path, config: dict[str, Any]) -> None:
    """Weights of another scheme look like plain tensors, and would be read as nonsense."""
    section = config.get("quantization_config")
    if section is None:
        return
    method = section.get("quant_method") if isinstance(section, dict) else section
    kind = section.get("format", "float-quantized") if isinstance(section, dict) else None
    if method not in QUANT_METHODS or (method == "compressed-tensors" and kind != "float-quantized"):
        supported = f"{', '.join(QUANT_METHODS)} (of compressed-tensors, float-quantized weights), or none"
        raise UnsupportedModelError(f"{folder} is quantized with {method!r} ({kind}); supported: {supported}")
