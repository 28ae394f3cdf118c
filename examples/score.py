"""How likely a model finds a sentence, token by token: python examples/score.py [MODEL] [TEXT]"""

from __future__ import annotations

import sys

import torch

from exllama import Model


def main(source: str, text: str) -> None:
    with Model.from_pretrained(source) as model:
        ids = torch.tensor(model.tokenizer.encode(text))
        chances = torch.log_softmax(model.logits(ids).double(), dim=-1)
        for position in range(1, len(ids)):
            token = int(ids[position])
            print(f"{float(chances[position - 1, token].exp()):8.4f}  {model.tokenizer.decode([token])!r}")


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["default", "Paris is the capital of France."][len(sys.argv) - 1 :]
    main(*arguments)
