"""What one step runs: rows of tokens for the model, and the draws from its logits."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import NamedTuple

import numpy as np
import torch

from exllama.engine.batch import Batch
from exllama.engine.rows import BatchRows
from exllama.generator.constraints.constraint import apply_mask
from exllama.generator.drafting.rejection import follow_rule
from exllama.generator.lane import Lane
from exllama.generator.sampling.rows import SamplingRows
from exllama.generator.sampling.sampler import sample_rows
from exllama.generator.sequence import Sequence


class Part(NamedTuple):
    """The next `num_tokens` tokens of a lane and its drafts; `draws`: these are all tokens, so a new one is drawn.

    The logits of row `last` tell the token that follows; those of row last + i, the one after i drafts.
    """

    sequence: Sequence
    lane: Lane  # one of its lanes
    num_tokens: int
    num_drafts: int
    last: int
    draws: bool


class Step:
    """One step under construction, over buffers that every step uses again.

    page_table: (max_sequences, P) int32, kept up to date by the page tables of the sequences, row `slot` each.
    """

    def __init__(self, max_rows: int, max_sequences: int, pages_per_sequence: int) -> None:
        self.page_table = np.zeros((max_sequences, pages_per_sequence), np.int32)
        self.parts: list[Part] = []
        self._rows = BatchRows(max_rows, self.page_table)
        self._sampling = SamplingRows(max_sequences)

    @property
    def rows(self) -> int:
        """Tokens to compute."""
        return self._rows.count

    def clear(self) -> None:
        """Nothing to run."""
        self.parts.clear()
        self._rows.clear()

    def add(self, sequence: Sequence, lane: Lane, count: int) -> None:
        """The next `count` tokens of a lane of `sequence`, whose pages have room; with the last one, the drafts too."""
        end = lane.computed + count
        draws = end == lane.num_tokens
        drafts = sequence.num_drafts if draws else 0
        if drafts and lane is not sequence:
            lane.reserve(end + drafts)
            lane.buffer[end : end + drafts] = sequence.buffer[sequence.num_tokens : sequence.num_tokens + drafts]
        self._rows.add(lane.slot, lane.buffer, lane.computed, end + drafts)
        self.parts.append(Part(sequence, lane, count, drafts, self._rows.count - drafts - 1, draws))

    @property
    def reads_prompts(self) -> bool:
        """Some part is more than the last token of a lane with its drafts."""
        return any(part.num_tokens > 1 for part in self.parts)

    @property
    def drawing(self) -> list[Part]:
        """The parts that draw a token."""
        return [part for part in self.parts if part.draws]

    @property
    def batch(self) -> Batch:
        """Valid until the next clear(). Logit rows: those without drafts, then those after one draft, and so on."""
        drawing = self.drawing
        rows = [part.last for part in drawing]
        for drafts in range(1, 1 + max((part.num_drafts for part in drawing), default=0)):
            rows += [part.last + drafts for part in drawing if part.num_drafts >= drafts]
        return self._rows.batch(rows)

    def draw_all(self, logits: torch.Tensor, failed: set[Sequence], accept: Callable[[Sequence, int], bool]) -> None:
        """Draws from logits (rows asked for in `batch`, V) for all but the failed, and hands over every token.

        accept(sequence, token): the sequence goes on and its next draft was this token, so the row after it counts.
        A sequence gets here again only then: samplers never see a token that does not stay.
        """
        asked = self.drawing
        begin = drafts = 0
        kept = {part.sequence for part in asked} - failed
        while kept:
            own = _guided(asked, logits[begin : begin + len(asked)])
            rows = [row for row, part in enumerate(asked) if part.lane is part.sequence and part.sequence in kept]
            sequences = [asked[row].sequence for row in rows]
            tokens = self.draw(sequences, own if len(rows) == len(asked) else own[rows])
            kept = {each for each, token in zip(sequences, tokens, strict=True) if accept(each, token)}
            begin, drafts = begin + len(asked), drafts + 1
            asked = [part for part in asked if part.num_drafts >= drafts]

    def draw(self, sequences: Many[Sequence], logits: torch.Tensor) -> list[int]:
        """The next token of each sequence; logits: (len(sequences), V) float32, what the model says after its tokens.

        Negative where there is none (sampling_error says why).
        """
        for row, sequence in enumerate(sequences):
            if sequence.num_tokens < sequence.endless_until:
                logits[row, list(sequence.stop_ids)] = -torch.inf
            if sequence.first_ids and sequence.num_tokens == sequence.prompt_tokens:
                _keep_only(logits[row], sequence.first_ids)
            if sequence.num_tokens in sequence.bans:
                logits[row, sequence.bans[sequence.num_tokens]] = -torch.inf
            if sequence.constraint is not None and not sequence.masks_natively:
                apply_mask(logits[row].numpy(), sequence.constraint.mask())
        if not any(sequence.follows_rule for sequence in sequences):
            return self._sample(sequences, logits)
        tokens = []
        for row, sequence in enumerate(sequences):
            token = follow_rule(sequence, logits[row]) if sequence.follows_rule else None
            tokens.append(self._sample([sequence], logits[row : row + 1])[0] if token is None else token)
        return tokens

    def _sample(self, sequences: Many[Sequence], logits: torch.Tensor) -> list[int]:
        self._sampling.clear()
        for sequence in sequences:
            allowed = sequence.constraint.mask() if sequence.masks_natively and sequence.constraint else None
            self._sampling.add(sequence.sampler, sequence.buffer, sequence.num_tokens, allowed)
        return sample_rows(logits, self._sampling)


def _keep_only(row: torch.Tensor, ids: list[int]) -> None:
    """Sets the logits (V,) of all other tokens to -inf."""
    kept = row[ids]
    row.fill_(-torch.inf)
    row[ids] = kept


def _guided(parts: list[Part], logits: torch.Tensor) -> torch.Tensor:
    """logits (len(parts), V) where rows of sequences with a negative prompt, whose rows follow, are led away from it.

    uncond + scale * (cond - uncond), "classifier-free guidance" (Sanchez et al. 2023, "Stay on topic with
    classifier-free guidance", equation 7; raw logits differ from their logarithms of probabilities by a constant only).
    """
    for row, part in enumerate(parts):
        if part.lane is not part.sequence:
            own, other = logits[row - 1], logits[row]
            led = other + part.sequence.job.cfg_scale * (own - other)
            logits[row - 1] = torch.where(own == -torch.inf, own, led)  # what the prompt excludes stays so
    return logits
