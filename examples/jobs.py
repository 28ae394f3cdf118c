"""Many requests over one model, driven step by step, as a server would: python examples/jobs.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Job, Sampling
from exllama.generator import Finished, Text

QUESTIONS = ["What is the capital of Italy?", "Name a fruit.", "What colour is snow?", "How many legs has a spider?"]


def main(source: str) -> None:
    with Generator.from_pretrained(source) as generator:
        jobs = {}
        for question in QUESTIONS:
            prompt = generator.tokenizer.encode_chat([{"role": "user", "content": question}])
            jobs[generator.enqueue(Job(prompt, max_new_tokens=24, sampling=Sampling(temperature=0)))] = question
        pieces = 0
        while generator.active:
            for event in generator.step():
                if isinstance(event, Text):
                    pieces += 1
                elif isinstance(event, Finished):
                    print(f"{jobs[event.job]} {event.text!r} ({event.new_tokens} tokens, {event.reason})")
        print(f"{pieces} pieces of text came in turn")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
