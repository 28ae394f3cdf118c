"""From flags to a running chat."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from exllama.cli.chat.commands import Chat
from exllama.cli.chat.conversation import Conversation
from exllama.cli.chat.repl import Repl, answer_pipe, terminal_reader
from exllama.cli.chat.screen import ColourScreen, PlainScreen
from exllama.cli.chat.statistics import Statistics
from exllama.cli.chat.terminal import is_interactive, silent_keyboard
from exllama.cli.console import progress_bars
from exllama.cli.flags import placement_options
from exllama.cli.sampling_flags import given_sampling
from exllama.generator import Generator, Sampling

TEMPERATURE = 0.3  # small models ramble above it


def start(args: argparse.Namespace) -> int:
    """args: the flags of `python -m exllama.chat`."""
    given = given_sampling(args)
    question = None if is_interactive() else sys.stdin.read()
    given.setdefault("temperature", TEMPERATURE if question is None else 0.0)  # a script gives the same answer twice
    conversation = Conversation(Sampling(**given), args.system, args.max_new_tokens)
    with progress_bars() as progress:
        generator = Generator.from_pretrained(
            args.model, draft=args.draft, **placement_options(args), progress=progress
        )
    with generator:
        chat = Chat(conversation, Statistics(generator.context_length))
        if question is not None:
            answer_pipe(Repl(generator, chat, PlainScreen(sys.stdout, sys.stderr), sys.stdin.readline), question)
            return 0
        screen = ColourScreen(Console(highlight=False))
        screen.note(f"{args.model}, context {generator.context_length} tokens. /help lists the commands.")
        with silent_keyboard():
            Repl(generator, chat, screen, terminal_reader()).run()
    return 0
