"""Prints an answer while it is written: python examples/stream.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Sampling


def main(source: str) -> None:
    with Generator.from_pretrained(source) as generator:
        sampling = Sampling(temperature=0.3, top_p=0.95, seed=1)
        for chunk in generator.stream("The three primary colours are", max_new_tokens=40, sampling=sampling):
            print(chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
