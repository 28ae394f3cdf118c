"""A long beginning that many questions share: computed once, found again by the next process.

python examples/pages_on_disk.py
"""

from __future__ import annotations

import tempfile
import time

from exllama import Generator, Job

RULES = "You answer questions about a library. " + "Rule: be brief, name the shelf, and never guess. " * 60
QUESTIONS = ("Where are the maps?", "Where are the novels?")


def ask(folder: str, question: str) -> None:
    """Starts a generator, as a new process would, and asks one question."""
    with Generator.from_pretrained("default", cache_tokens=4096, cache_spill=folder, cache_spill_bytes=1 << 30) as gen:
        job = Job(f"{RULES}\nQuestion: {question}\nAnswer:", max_new_tokens=12)
        start = time.perf_counter()
        for _ in gen.stream(job):
            pass
        seconds = time.perf_counter() - start
    assert job.finished is not None
    found = f"{job.finished.cached_tokens} of {job.finished.prompt_tokens} tokens were there"
    print(f"{question} {found}, {seconds:.2f} s, of which {job.finished.times.prefill:.2f} s for the prompt")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for question in QUESTIONS:
            ask(folder, question)


if __name__ == "__main__":
    main()
