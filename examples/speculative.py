"""Guessed tokens make an answer faster and change nothing of it: python examples/speculative.py [MODEL] [DRAFT]"""

from __future__ import annotations

import sys

from exllama import Generator, Job

LINE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\n"


def main(source: str, draft: str) -> None:
    answers = []
    for guessing in (None, draft):
        with Generator.from_pretrained(source, cache_tokens=4096, draft=guessing) as generator:
            job = Job(LINE * 3, max_new_tokens=100, min_new_tokens=100)
            answers.append("".join(chunk.text for chunk in generator.stream(job)))
            done = job.finished
            print(
                f"draft {guessing}: {done.new_tokens / (done.times.prefill + done.times.decode):.0f} tokens/s, "
                f"{done.accepted_drafts} guesses were right, {done.rejected_drafts} wrong"
            )
    print("the same answer:", answers[0] == answers[1])


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["default", "ngram"][len(sys.argv) - 1 :]
    main(*arguments)
