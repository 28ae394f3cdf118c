"""The answer of one job while it grows: tokens become text, stop strings and banned ones are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from exllama.generator.banned import BannedStrings
from exllama.generator.stops import StopStrings


class Detokenizer(Protocol):
    """tokenizer.detokenizer.IncrementalDetokenizer."""

    @property
    def unfinished(self) -> bytes: ...
    def resume(self, unfinished: bytes) -> None: ...
    def add(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


Piece = tuple[str, tuple[int, ...]]  # text and the tokens that begin in it


class _Held(NamedTuple):
    """A token that may be taken back, and how everything was before it."""

    token_id: int
    folded: str  # its text, for comparing
    piece: Piece  # what can be shown from this token on
    unfinished: bytes
    stop_held: str
    endless: int
    hidden: int
    waiting: list[tuple[int, int]]


class Answer:
    """`add` a token at a time; a piece of text comes out together with the tokens that begin in it.

    Tokens without text of their own (a part of a character, a control token) go with the text that follows them.
    While the end of the text may become a banned string, its tokens wait; when it has become one, `taken_back` says
    how many tokens are gone, and `banned_token` which one began it.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Sequence[str],
        min_tokens: int = 0,
        banned: Sequence[str] = (),
        hidden: int = 0,
    ) -> None:
        """min_tokens: stop strings count only in the text of the tokens after these.

        hidden: so many characters at the beginning belong to the prompt (token healing).
        """
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._banned = BannedStrings(banned) if banned else None
        self._endless, self._hidden = min_tokens, hidden
        self._parts: list[str] = []
        self._waiting: list[tuple[int, int]] = []  # (where its text begins in the text not shown yet, token id)
        self._held: list[_Held] = []
        self.stop: str | None = None
        self.taken_back = 0  # by the last `add`
        self.banned_token = -1

    @property
    def text(self) -> str:
        """All text shown so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def add(self, token_id: int) -> Piece:
        """The text that can be shown now and its tokens; `stop` is then the stop string that ended it, if any."""
        if self._banned is not None:
            return self._hold(token_id, self._banned)
        return self._show(self._read(token_id, self._text(token_id)))

    def finish(self) -> Piece:
        """No more tokens come and no stop string was found: the text and the tokens that were held back."""
        text, tokens = self._release(len(self._held))
        shown, self.stop = self._stops.add(self._detokenizer.flush())
        rest, more = self._show(self._cut(shown + ("" if self.stop else self._stops.flush())))
        tokens += more
        if self.stop is None:
            tokens += tuple(token for _, token in self._waiting)
            self._waiting.clear()
        return text + rest, tokens

    def _text(self, token_id: int) -> str:
        """What the token adds to the answer."""
        text = self._detokenizer.add(token_id)
        if self._hidden:
            before, self._hidden = self._hidden, max(self._hidden - len(text), 0)
            return text[before:]
        return text

    def _read(self, token_id: int, text: str) -> Piece:
        """What can be shown from a token with this text on, as far as stop strings are concerned."""
        self._waiting.append((len(self._stops.held), token_id))
        if self._endless:
            self._endless -= 1
            return self._cut(text)
        shown, self.stop = self._stops.add(text)
        return self._cut(shown)

    def _cut(self, text: str) -> Piece:
        """Text that leaves, with its tokens."""
        if not text:
            return "", ()
        length, waiting = len(text), self._waiting
        if len(waiting) == 1 and waiting[0][0] == 0:  # nearly always
            return text, (waiting.pop()[1],)
        tokens = tuple(token for start, token in waiting if start < length)
        self._waiting = [(start - length, token) for start, token in waiting if start >= length]
        return text, tokens

    def _show(self, piece: Piece) -> Piece:
        if piece[0]:
            self._parts.append(piece[0])
        return piece

    def _hold(self, token_id: int, banned: BannedStrings) -> Piece:
        unfinished = self._detokenizer.unfinished
        before = self._stops.held, self._endless, self._hidden, list(self._waiting)
        text = self._text(token_id)
        self._held.append(_Held(token_id, text.casefold(), self._read(token_id, text), unfinished, *before))
        folded = [held.folded for held in self._held]
        found, self.taken_back = banned.find(folded), 0
        if found is not None:
            self._take_back(self._begin(found))
            return "", ()
        return self._release(len(folded) if self.stop else self._begin(banned.begun(folded)))

    def _begin(self, index: int) -> int:
        """The held token that the first character of the text of number `index` begins in."""
        after = [*(held.unfinished for held in self._held), self._detokenizer.unfinished]
        while index > 0 and after[index]:
            index -= 1
        return index

    def _take_back(self, index: int) -> None:
        """All held tokens from number `index` on."""
        first = self._held[index]
        self.taken_back, self.banned_token, self.stop = len(self._held) - index, first.token_id, None
        self._detokenizer.resume(first.unfinished)
        self._stops.held, self._endless, self._hidden = first.stop_held, first.endless, first.hidden
        self._waiting = list(first.waiting)
        del self._held[index:]

    def _release(self, count: int) -> Piece:
        """Shows what the first `count` held tokens brought."""
        pieces = [held.piece for held in self._held[:count]]
        del self._held[:count]
        return self._show(("".join(text for text, _ in pieces), tuple(token for _, ids in pieces for token in ids)))
