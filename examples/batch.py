"""Many prompts at once: the weights are read once for all of them: python examples/batch.py [MODEL]"""

from __future__ import annotations

import sys
import time

from exllama import Generator

COUNTRIES = ["France", "Italy", "Japan", "Egypt", "Peru", "Norway", "India", "Kenya"]


def main(source: str) -> None:
    with Generator.from_pretrained(source, cache_tokens=8192) as generator:
        prompts = [f"The capital of {country} is" for country in COUNTRIES]
        begin = time.perf_counter()
        one_by_one = [generator.generate(prompt, max_new_tokens=16) for prompt in prompts]
        middle = time.perf_counter()
        together = generator.generate(prompts, max_new_tokens=16)
        end = time.perf_counter()
        for prompt, answer in zip(prompts, together, strict=True):
            print(prompt, answer.strip().splitlines()[0])
        print(f"one by one {middle - begin:.2f} s, together {end - middle:.2f} s, equal: {together == one_by_one}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
