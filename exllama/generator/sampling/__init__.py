"""Choosing the next token: settings, the stack (the definition), the sampler, counter-based random numbers."""

from exllama.generator.sampling.settings import GREEDY, Sampling

__all__ = ["GREEDY", "Sampling"]
