"""Which regular expressions of a tokenizer.json are run at all.

The engine behind `tokenizers` (Oniguruma) backtracks, so a pattern such as `(a+)+b` takes exponential time, and one
such as `((a{999}){999}){999}` fills memory when it is compiled. What tokenizers need is far simpler: the patterns of
all known models pass the rules below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LENGTH = 8192
MAX_DEPTH = 16
MAX_REPEAT = 1024
MAX_UNBOUNDED = 4  # in one alternative; each may multiply the time by the length of the text
_FEW = 8

_GROUP = re.compile(r"\((\?(:|=|!|<=|<!|>|[imx-]+:))?(?![?*])")
_FLAGS = re.compile(r"\(\?[imx-]+\)")
_CODE = r"x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}"
_ESCAPE = re.compile(rf"\\([pP]\{{\^?[A-Za-z0-9_ -]+\}}|{_CODE}|[^1-9kgpPxu])", re.DOTALL)
_QUANTIFIER = re.compile(r"([*+?]|\{(\d{0,9})(,?)(\d{0,9})\})[?+]?")
_CLASS_NAME = re.compile(r"\[:\^?[a-z]+:\]")


class PatternError(ValueError):
    """Says what is wrong with a pattern."""


@dataclass(frozen=True)
class _Shape:
    """repeat: how often its smallest part is copied at most. variable: matches in several ways.

    unbounded: repetitions without an end, one after the other.
    """

    repeat: int = 1
    variable: bool = False
    unbounded: int = 0


def check_pattern(pattern: str) -> None:
    """Raises PatternError unless matching takes at most polynomial time of a low degree."""
    if len(pattern) > MAX_LENGTH:
        raise PatternError(f"a pattern of {len(pattern)} characters; at most {MAX_LENGTH} are allowed")
    scanner = _Scanner(pattern)
    scanner.alternatives(0)
    if scanner.position < len(pattern):
        raise PatternError(f"an unmatched ) at character {scanner.position}")


class _Scanner:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.position = pattern, 0

    def alternatives(self, depth: int) -> _Shape:
        """a|b|c up to the end or an unopened parenthesis."""
        if depth > MAX_DEPTH:
            raise PatternError(f"groups nested deeper than {MAX_DEPTH}")
        branches = [self._branch(depth)]
        while self._peek() == "|":
            self.position += 1
            branches.append(self._branch(depth))
        variable = len(branches) > 1 or branches[0].variable
        return _Shape(max(b.repeat for b in branches), variable, max(b.unbounded for b in branches))

    def _branch(self, depth: int) -> _Shape:
        repeat, variable, unbounded = 1, False, 0
        while self._peek() not in ("", "|", ")"):
            shape = self._quantified(self._atom(depth))
            repeat, variable = max(repeat, shape.repeat), variable or shape.variable
            unbounded += shape.unbounded
        if unbounded > MAX_UNBOUNDED:
            raise PatternError(f"{unbounded} unbounded repetitions in a row; at most {MAX_UNBOUNDED} are allowed")
        return _Shape(repeat, variable, unbounded)

    def _atom(self, depth: int) -> _Shape:
        char = self._peek()
        if char == "(":
            return self._group(depth)
        if char == "[":
            self._class(depth)
        elif char == "\\":
            self._advance(_ESCAPE, "an escape that is not allowed (a back-reference, a call)")
        else:
            self.position += 1
        return _Shape()

    def _group(self, depth: int) -> _Shape:
        flags = _FLAGS.match(self.pattern, self.position)
        if flags:
            self.position = flags.end()
            return _Shape()
        self._advance(_GROUP, "a kind of group that is not allowed")
        shape = self.alternatives(depth + 1)
        if self._peek() != ")":
            raise PatternError("an unclosed (")
        self.position += 1
        return shape

    def _class(self, depth: int) -> None:
        """[...], which may hold classes again."""
        if depth > MAX_DEPTH:
            raise PatternError(f"classes nested deeper than {MAX_DEPTH}")
        self.position += 2 if self.pattern.startswith("[^", self.position) else 1
        first = True
        while first or self._peek() != "]":
            char, first = self._peek(), False
            if char == "":
                raise PatternError("an unclosed [")
            name = _CLASS_NAME.match(self.pattern, self.position)
            if name:
                self.position = name.end()
            elif char == "[":
                self._class(depth + 1)
            elif char == "\\":
                self._advance(_ESCAPE, "an escape that is not allowed")
            else:
                self.position += 1
        self.position += 1

    def _quantified(self, shape: _Shape) -> _Shape:
        match = _QUANTIFIER.match(self.pattern, self.position)
        while match and (match[2] or match[4] or match[1] in "*+?"):
            self.position = match.end()
            shape = _repeat(shape, *_bounds(match))
            match = _QUANTIFIER.match(self.pattern, self.position)
        return shape

    def _advance(self, expected: re.Pattern[str], otherwise: str) -> None:
        match = expected.match(self.pattern, self.position)
        if match is None:
            raise PatternError(f"{otherwise} at character {self.position}")
        self.position = match.end()

    def _peek(self) -> str:
        return self.pattern[self.position : self.position + 1]


def _bounds(match: re.Match[str]) -> tuple[int, int | None]:
    if match[1] in ("*", "+", "?"):
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[match[1]]
    least = int(match[2] or 0)
    return least, (int(match[4]) if match[4] else None) if match[3] else least


def _repeat(shape: _Shape, least: int, most: int | None) -> _Shape:
    repeat = shape.repeat * max(least, most or 1)
    if repeat > MAX_REPEAT:
        raise PatternError(f"a repetition of {repeat}; at most {MAX_REPEAT} are allowed")
    if (most is None or most > _FEW) and shape.variable:
        raise PatternError("a repetition of something that varies itself, which can take exponential time")
    unbounded = shape.unbounded + (most is None)
    return _Shape(repeat, shape.variable or least != most, unbounded)
