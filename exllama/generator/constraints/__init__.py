"""What an answer may look like: a grammar in the job, a mask of tokens at every draw."""

from exllama.generator.constraints.grammar import Grammar

__all__ = ["Grammar"]
