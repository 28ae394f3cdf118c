"""The same question with and without texts that must not occur: python examples/banned_strings.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Job

BANNED = ["paris", "capital"]


def main(source: str) -> None:
    with Generator.from_pretrained(source) as generator:
        prompt = generator.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
        for banned in ([], BANNED):
            job = Job(prompt, max_new_tokens=24, banned_strings=banned)
            for _ in generator.stream(job):
                pass
            assert not any(text in job.text.lower() for text in banned)
            print(f"without {', '.join(banned) or 'nothing'}: {job.text!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
