"""A prompt that ends inside of a token, with and without healing: python examples/token_healing.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Job

PROMPT = "def is_even(number):\n    return number % 2 =="
CUT = PROMPT[:-1]  # ends inside of the token " =="


def main(source: str) -> None:
    with Generator.from_pretrained(source, cache_tokens=1024) as generator:
        for prompt in (PROMPT, CUT):
            for healing in (False, True):
                job = Job(prompt, max_new_tokens=6, token_healing=healing)
                generator.generate(job)
                print(f"{'healed' if healing else 'as it is'}: {prompt[-4:]!r} goes on with {job.text!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
