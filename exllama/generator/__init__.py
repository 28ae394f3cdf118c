"""From jobs to answers: the loop (generator), the scheduler, sampling, stops and events."""

from exllama.generator.async_generator import AsyncGenerator
from exllama.generator.events import Event, Finished, Prefill, Started, Text, Times
from exllama.generator.generator import Generator
from exllama.generator.job import Job
from exllama.generator.sampling import GREEDY, Sampling, TokenLogprob

__all__ = [
    "GREEDY", "AsyncGenerator", "Event", "Finished", "Generator", "Job", "Prefill", "Sampling", "Started", "Text",
    "Times", "TokenLogprob",
]  # fmt: skip
