"""From the files of single linears to a model folder that engines read; config.json is written last."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exllama import formats
from exllama.errors import ConversionError
from exllama.layers.embedding import Embedding
from exllama.loader.progress import Progress
from exllama.loader.safetensors_checkpoint import INDEX
from exllama.loader.safetensors_file import SafeTensor, SafetensorsFile

from .atomic import write_json, write_whole
from .job import Job
from .quantization import Linear
from .quantizer import Quantizer
from .safetensors_writer import Entry, write_safetensors
from .source import SourceModel
from .tokenizer_files import architecture_names, tokenizer_files

SHARD_BYTES = 4 << 30
_HALF_BYTES = 2


def compile_model(
    source: SourceModel,
    quantizer: Quantizer,
    linears: list[Linear],
    head: str,
    job: Job,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Writes shards, their index, tokenizer files and the configurations into the job's folder.

    head: name of the linear that `bits` leaves out. Raises ConversionError for a number beyond fp16.
    """
    files = [SafetensorsFile(job.linears / f"{linear.name}.safetensors") for linear in linears]
    try:
        entries = _plain_entries(source, {linear.name for linear in linears})
        entries += [_copied(tensor) for file in files for tensor in file.tensors.values()]
        _write_shards(job.folder, sorted(entries, key=lambda entry: entry.name), shard_bytes, progress)
    finally:
        for file in files:
            file.close()
    for name, content in tokenizer_files(source.checkpoint).items():
        write_whole(job.folder / name, content)
    body = mean_bits([linear for linear in linears if linear.name != head])
    quantization = quantizer.config(round(body, 2), mean_bits([each for each in linears if each.name == head]))
    storage = {} if quantizer.name != "exl3" else {"tensor_storage": _storage(linears, files)}
    write_json(job.folder / "quantization_config.json", quantization | storage)
    write_json(job.folder / "config.json", _config(source, quantization))


def mean_bits(linears: list[Linear]) -> float:
    """Stored bits per weight over some linears; 0 for none."""
    weights = sum(linear.out_features * linear.in_features for linear in linears)
    bits = math.fsum(linear.bits * linear.out_features * linear.in_features for linear in linears)
    return bits / weights if weights else 0.0


def _plain_entries(source: SourceModel, quantized: set[str]) -> list[Entry]:
    """Embedding, norms and biases, as fp16."""
    made = []
    for module in source.modules():
        for name in module.tensor_names():
            key = name.removesuffix(".weight")
            if key in quantized:
                continue
            if isinstance(module, Embedding):
                made.append(_table(source, key, (module.vocab_size, module.table.in_features)))
            else:
                made.append(_vector(source, name))
    return made


def _table(source: SourceModel, key: str, shape: tuple[int, int]) -> Entry:
    def read() -> bytes:
        weight = formats.load_weight(source.checkpoint, key, shape, "reference", "float32")
        return _half(f"{key}.weight", weight.dequantize())

    return Entry(f"{key}.weight", "F16", shape, _HALF_BYTES * math.prod(shape), read)


def _vector(source: SourceModel, name: str) -> Entry:
    size = math.prod(source.checkpoint.tensors[name].shape)
    values = formats.load_vector(source.checkpoint, name, size)
    return Entry(name, "F16", (size,), _HALF_BYTES * size, lambda: _half(name, values))


def _half(name: str, values: torch.Tensor) -> bytes:
    array = values.numpy().astype("<f2")
    if not np.isfinite(array).all():
        largest = float(values.abs().max())
        raise ConversionError(f"{name} holds {largest:g}, and the file's fp16 reaches to 65504: use another format")
    return array.tobytes()


def _copied(tensor: SafeTensor) -> Entry:
    rows = math.prod(tensor.shape[:-1])
    return Entry(tensor.name, tensor.type, tensor.shape, tensor.nbytes, lambda: tensor.read_rows(0, rows).tobytes())


def _write_shards(folder: Path, entries: list[Entry], limit: int, progress: Progress | None) -> None:
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(each.nbytes for each in shards[-1]) + entry.nbytes > limit:
            shards.append([])
        shards[-1].append(entry)
    count = len(shards)
    names = (
        ["model.safetensors"] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    )
    for number, (name, shard) in enumerate(zip(names, shards, strict=True)):
        write_safetensors(folder / name, shard)
        if progress:
            progress("compile", number + 1, count)
    if count > 1:
        total = sum(entry.nbytes for entry in entries)
        where = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _storage(linears: list[Linear], files: list[SafetensorsFile]) -> dict[str, Any]:
    """What each linear is stored as: for the eyes of people and tools, loaders look at the tensors."""
    return {
        linear.name: {
            "stored_tensors": {
                name: {"shape": list(tensor.shape), "n_bytes": tensor.nbytes, "dtype": tensor.type}
                for name, tensor in file.tensors.items()
            },
            "quant_format": "exl3",
            "bits_per_weight": linear.rate,
        }
        for linear, file in zip(linears, files, strict=True)
    }


def _config(source: SourceModel, quantization: dict[str, Any]) -> dict[str, Any]:
    """The source's configuration with what has changed."""
    config: dict[str, Any] = dict(source.checkpoint.config)
    config.setdefault("architectures", architecture_names(config["model_type"]))
    before = config.pop("quantization_config", None)
    if before is not None:
        quantization = {**quantization, "original_quantization_config": before}
    config.pop("dtype", None)
    changed = {"torch_dtype": "float16", "tie_word_embeddings": False, "quantization_config": quantization}
    return config | changed
