"""When to guess, and how much: between the scheduler, which verifies drafts, and a drafter, which makes them."""

from __future__ import annotations

from dataclasses import dataclass

from exllama.generator.drafting.drafter import Drafter, Guess
from exllama.generator.drafting.pace import Rate, StepCosts, choose_counts
from exllama.generator.sequence import Sequence

MAX_DRAFTS = 16  # per sequence and step
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 512  # steps without drafts after which one is tried all the same


@dataclass
class _Record:
    """What is known about the guesses for one sequence."""

    rates: list[Rate]  # by kind
    pause: int = _FIRST_PAUSE
    rested: int = 0  # steps in which there were guesses that did not look worth while
    kind: int = 0  # of the drafts being verified
    offered: int = 0
    accepted: int = 0  # the sequence's count before them


class Speculation:
    """Owns what is learned from drafts: how often they are right, and what a step costs."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._rates = [Rate(prior) for prior in drafter.priors]  # of all sequences, what a new one starts with
        self._records: dict[Sequence, _Record] = {}
        self._costs = StepCosts()
        self._verified: list[Sequence] = []  # those with drafts in this step

    def propose(self, sequences: list[Sequence], budget: int) -> None:
        """Puts drafts behind the tokens of sequences that are about to draw; `budget` rows are free for them."""
        self._forget_unverified()
        guesses = [self._guess(sequence) for sequence in sequences]
        if not any(guess.longest for guess in guesses):
            return
        counts = self._choose(sequences, guesses, budget)
        chosen = [index for index, count in enumerate(counts) if count]
        if not chosen:
            return
        self._drafter.write([sequences[index] for index in chosen], [counts[index] for index in chosen])
        self._verified = [sequences[index] for index in chosen if sequences[index].num_drafts]
        for index in chosen:
            sequence, record = sequences[index], self._records[sequences[index]]
            record.kind, record.rested = guesses[index].kind, 0
            record.offered, record.accepted = sequence.num_drafts, sequence.accepted_drafts

    def learn(self, rows: int, seconds: float | None) -> None:
        """The step has run: `rows` in `seconds`, None where prompts had a part in it."""
        if seconds is not None:
            self._costs.observe(rows, seconds)
        for sequence in self._verified:
            if sequence.slot >= 0:
                self._learn(sequence)
        self._verified = []

    def drop(self, sequence: Sequence) -> None:
        """The sequence leaves the batch."""
        self._records.pop(sequence, None)
        self._drafter.drop(sequence)

    def close(self) -> None:
        """Gives the drafter's memory back."""
        self._drafter.close()

    def check_integrity(self, running: list[Sequence]) -> None:
        """Raises AssertionError on a broken invariant; running: all sequences that have a slot."""
        assert self._records.keys() <= set(running), "something is remembered of a sequence that has left"
        self._drafter.check_integrity()

    def _forget_unverified(self) -> None:
        """There are some if the last step failed."""
        for sequence in self._verified:
            if sequence.slot >= 0:
                sequence.num_drafts = 0
                self._drafter.settle(sequence)
        self._verified = []

    def _guess(self, sequence: Sequence) -> Guess:
        """What the drafter offers, within what the answer and its pages have room for: drafts take no page."""
        n = sequence.num_tokens
        room = min(lane.table.capacity - lane.num_tokens for lane in sequence.lanes)
        room = min(MAX_DRAFTS, sequence.last - n - 1, room)
        if room <= 0 or not sequence.may_guess:
            return Guess(0, 0)
        kind, longest = self._drafter.look(sequence)
        return Guess(kind, min(longest, room))

    def _choose(self, sequences: list[Sequence], guesses: list[Guess], budget: int) -> list[int]:
        records = [self._record(sequence) for sequence in sequences]
        chances = [record.rates[guess.kind].value for record, guess in zip(records, guesses, strict=True)]
        lanes = sum(len(sequence.lanes) for sequence in sequences)  # each draft is a row in all lanes of its sequence
        longest = [min(guess.longest, budget // lanes) for guess in guesses]
        guessing = self._drafter.guess_seconds(len(sequences))
        counts = choose_counts(chances, longest, self._costs, guessing, len(sequences))
        for index, record in enumerate(records):
            if counts[index] == 0 and longest[index]:
                record.rested += 1
                if record.rested >= record.pause:
                    counts[index] = 1
        return counts

    def _learn(self, sequence: Sequence) -> None:
        record = self._records.get(sequence)
        if record is None:
            return  # some of its tokens were taken back
        hits = sequence.accepted_drafts - record.accepted
        record.rates[record.kind].learn(hits, hits + (hits < record.offered))
        record.pause = _FIRST_PAUSE if hits else min(2 * record.pause, _LONGEST_PAUSE)
        self._drafter.settle(sequence)

    def _record(self, sequence: Sequence) -> _Record:
        if sequence not in self._records:
            self._records[sequence] = _Record([Rate(rate) for rate in self._rates])
        return self._records[sequence]
