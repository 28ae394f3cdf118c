"""From jobs to answers: the loop (generator), the scheduler, sampling, stops and events.

Each name is imported when it is first used: a command line that only reads its flags needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exllama.generator.async_generator import AsyncGenerator
    from exllama.generator.events import Event, Finished, Prefill, Started, Text, Times
    from exllama.generator.generator import Generator
    from exllama.generator.job import Job
    from exllama.generator.sampling import GREEDY, Sampling
    from exllama.generator.sampling.logprobs import TokenLogprob

__all__ = [
    "GREEDY", "AsyncGenerator", "Event", "Finished", "Generator", "Job", "Prefill", "Sampling", "Started", "Text",
    "Times", "TokenLogprob",
]  # fmt: skip

_HOMES = {
    "AsyncGenerator": "async_generator",
    "GREEDY": "sampling",
    "Generator": "generator",
    "Job": "job",
    "Sampling": "sampling",
    "TokenLogprob": "sampling.logprobs",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'exllama.generator' has no attribute {name!r}")
    value: object = getattr(import_module(f"exllama.generator.{_HOMES.get(name, 'events')}"), name)
    globals()[name] = value
    return value
