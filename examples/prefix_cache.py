"""A long text is read once and asked about many times: python examples/prefix_cache.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Job

TEXT = "The lighthouse keeper counts the ships that pass and writes their names in a book. " * 60


def main(source: str) -> None:
    with Generator.from_pretrained(source, cache_tokens=8192) as generator:
        for question in ("Who counts the ships?", "What is written in the book?", "Where does the keeper work?"):
            job = Job(f"{TEXT}\nQuestion: {question}\nAnswer:", max_new_tokens=12, stop=["\n"])
            answer = "".join(chunk.text for chunk in generator.stream(job))
            done = job.finished
            print(
                f"{answer.strip()!r} after {done.times.prefill * 1000:.0f} ms: {done.cached_tokens} of "
                f"{done.prompt_tokens} tokens were in the cache"
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
