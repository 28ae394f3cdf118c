"""Jobs that come and go while others run: priorities, deadlines, cancelling: python examples/dynamic_jobs.py [MODEL]"""

from __future__ import annotations

import sys

from exllama import Generator, Job
from exllama.generator import Finished


def main(source: str) -> None:
    with Generator.from_pretrained(source, max_batch_size=2, cache_tokens=4096) as generator:
        names = {
            generator.enqueue(Job("A long story:", max_new_tokens=400, priority=-1)): "story",
            generator.enqueue(Job("A long poem:", max_new_tokens=400, deadline=0.5)): "poem",
        }
        steps = 0
        while generator.active:
            for event in generator.step():
                if isinstance(event, Finished):
                    print(f"{names[event.job]}: {event.new_tokens} tokens, {event.reason}, after {steps} steps")
            steps += 1
            if steps == 10:  # both places are taken: the story steps back, and goes on later as if nothing had been
                names[generator.enqueue(Job("Two and two is", max_new_tokens=8, priority=1))] = "sum"
            if steps == 120:
                generator.cancel(next(job for job, name in names.items() if name == "story"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
