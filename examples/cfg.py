"""The same question kept away from a negative prompt (classifier-free guidance): python examples/cfg.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Job

QUESTION = "Tell me about the sea."


def main(source: str) -> None:
    with Generator.from_pretrained(source, cache_tokens=4096) as generator:
        prompt, negative = (
            generator.tokenizer.encode_chat(
                [{"role": "system", "content": style}, {"role": "user", "content": QUESTION}]
            )
            for style in ("You are a cheerful pirate.", "You are a sober scientist.")
        )
        plain = Job(prompt, max_new_tokens=40)
        guided = Job(prompt, max_new_tokens=40, negative_prompt=negative, cfg_scale=1.5)
        generator.generate([plain, guided])  # one batch of three sequences
        print(f"as it is:  {plain.text!r}")
        print(f"away from the other style: {guided.text!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
