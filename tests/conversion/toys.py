"""Toy models that can be converted, with a tokenizer; and the simplest quantizer there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedModel

from conversion.job import Settings
from conversion.quantizer import Quantized
from exllama.errors import ConversionError
from tests.models.toys import save, toy_config, toy_model

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SMALL = Settings("rtn", 4.0, 6.0, rows=6, length=48, measured_rows=2, verified_tokens=64)


def write_tokenizer(folder: Path) -> None:
    """A token for each byte, and two control tokens: 258 of the 300 rows that toy models have."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def toy(folder: Path, model_type: str = "llama", seed: int = 0, **changes: Any) -> tuple[Path, PreTrainedModel]:
    """A random model on disk and in memory."""
    model = toy_model(toy_config(model_type, **changes), seed)
    save(model, folder)
    write_tokenizer(folder)
    return folder, model


class RoundToNearest:
    """Rounds every row to 2^rate evenly spaced values and stores them as fp16; says that it stores `rate` bits."""

    name = "rtn"
    rates = (2.0, 3.0, 4.0, 6.0, 8.0)

    def bits(self, out_features: int, in_features: int, rate: float) -> float:
        return rate

    def quantize(self, weight: torch.Tensor, hessian: torch.Tensor, rate: float, seed: int) -> Quantized:
        if rate not in self.rates:
            raise ConversionError(f"no rate {rate}")
        assert torch.isfinite(hessian).all()
        step = 2 * weight.abs().amax(1, keepdim=True) / (2**rate - 1)
        rounded = ((weight / step - 0.5).round() + 0.5) * step
        stored = rounded.numpy().astype(np.float16)
        return Quantized({"weight": stored}, torch.from_numpy(stored.astype(np.float32)))

    def config(self, mean_bits: float, head_bits: float) -> dict[str, Any]:
        return {"quant_method": "exl3", "bits": mean_bits, "head_bits": head_bits}
