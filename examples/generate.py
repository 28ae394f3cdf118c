"""Answers to one prompt and to several at once, and a chat: python examples/generate.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Sampling


def main(source: str) -> None:
    with Generator.from_pretrained(source) as generator:
        print(generator.generate("Water boils at", max_new_tokens=16))
        prompts = ["The sun is", "The moon is", "The sea is"]
        sampling = Sampling(temperature=0.8, min_p=0.1, seed=7)  # each answer is the same alone
        for prompt, answer in zip(prompts, generator.generate(prompts, 16, sampling, stop=["."]), strict=True):
            print(f"{prompt}{answer}.")
        print(generator.chat([{"role": "user", "content": "Name three colours."}], max_new_tokens=40))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
