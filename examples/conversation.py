"""Every turn of a conversation finds what was computed before it: python examples/conversation.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Job

QUESTIONS = ["What is the capital of Italy?", "Name a river there.", "And a mountain?"]


def main(source: str) -> None:
    with Generator.from_pretrained(source, cache_tokens=4096) as generator:
        messages = []
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            job = Job(generator.tokenizer.encode_chat(messages), max_new_tokens=40)
            for chunk in generator.stream(job):
                print(chunk.text, end="", flush=True)
            print(f"\n({job.finished.cached_tokens} of {job.finished.prompt_tokens} prompt tokens were in the cache)")
            messages.append({"role": "assistant", "content": job.text})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
