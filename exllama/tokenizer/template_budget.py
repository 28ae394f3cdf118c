"""What a chat template may spend: processor time, characters that it makes, and the size of any one value.

A render runs on its caller's thread. Nothing can interrupt a C function, so every operation that could make something
large is measured before it runs, and every loop pass and call looks at the clock. That needs no signal (which only a
main thread gets), no second thread (which can not be killed) and no second process (which costs a tenth of a second).
"""

from __future__ import annotations

import time
from collections.abc import Sized
from contextvars import ContextVar
from typing import Any

from jinja2 import Undefined

from exllama.errors import TemplateError

SECONDS = 0.5  # of processor time: a busy machine does not make an honest template fail
CHARACTERS = 8 << 20  # made in all, beyond what the messages bring
LONGEST = 1 << 17  # characters of one value, beyond what the messages bring
MAX_NODES = 1 << 16  # values looked at when a structure is printed
_PER_ITEM = 64  # what an item of a new list costs, in characters
_MAX_BITS = 1 << 12


class Budget:
    """The account of one render. inputs: characters in the messages, which honest templates copy several times."""

    def __init__(self, inputs: int = 0) -> None:
        self.longest = LONGEST + 4 * inputs
        self._left = CHARACTERS + 32 * inputs
        self._deadline = time.thread_time() + SECONDS

    def tick(self) -> None:
        """Looks at the clock."""
        if time.thread_time() > self._deadline:
            raise TemplateError(f"the chat template ran for more than {SECONDS} seconds of processor time")

    def allow(self, characters: int) -> None:
        """Refuses one value that would be too long, before it is made, and pays for it."""
        if characters > self.longest:
            limit = f"at most {self.longest} are allowed"
            raise TemplateError(f"the chat template makes {characters} characters at once, {limit}")
        self.pay(characters)

    def pay(self, characters: int) -> None:
        """Takes what was made from the account."""
        self._left -= characters
        if self._left < 0:
            raise TemplateError("the chat template makes far more text than its messages call for")
        self.tick()

    def pay_result(self, value: object) -> None:
        """Pays for whatever an operation returned."""
        if isinstance(value, str):
            self.pay(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.pay(_PER_ITEM * len(value))
        else:
            self.tick()

    def size(self, value: Any) -> int:
        """An upper bound of len(str(value)), refusing what templates have no reason to print."""
        total, nodes, left = 0, 0, [value]
        while left:
            item = left.pop()
            nodes += 1
            total += self._size_of_one(item)
            if isinstance(item, dict):
                left += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple)):
                left += item
            if total > self.longest or nodes + len(left) > MAX_NODES:
                raise TemplateError("the chat template prints a structure that is too large")
        return total

    def _size_of_one(self, item: object) -> int:
        if isinstance(item, str):
            return len(item) + 4
        if isinstance(item, int):
            if item.bit_length() > _MAX_BITS:
                raise TemplateError("the chat template prints a number of more than a thousand digits")
            return 8 + item.bit_length() // 3
        if item is None or isinstance(item, (float, Undefined)):
            return 32
        if isinstance(item, (list, tuple, dict)):
            return 4 + 4 * len(item)
        raise TemplateError(f"the chat template prints a {type(item).__name__}, which is not text")


_current: ContextVar[Budget] = ContextVar("template_budget")


def start(budget: Budget) -> Any:
    """Makes the budget that of this context; give the result to `stop`."""
    return _current.set(budget)


def stop(token: Any) -> None:
    _current.reset(token)


def budget() -> Budget:
    """The budget of the render (or compilation) that is going on."""
    return _current.get()


def multiply(left: Any, right: Any) -> Any:
    """left * right, measured: sequences by their length, whole numbers by their digits."""
    for value, count in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)):
            each = 1 if isinstance(value, str) else _PER_ITEM
            budget().allow(len(value) * max(0, count) * each if isinstance(count, int) else 0)
            return left * right
    _check_bits(_bits(left) + _bits(right))
    return left * right


def power(left: Any, right: Any) -> Any:
    """left ** right of two numbers with a result of reasonable size."""
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
        raise TemplateError("the chat template raises something other than a number to a power")
    _check_bits(_bits(left) * abs(right) if isinstance(right, int) else 0)
    return left**right


def add(left: Any, right: Any) -> Any:
    """left + right, measured."""
    if isinstance(left, (str, list, tuple)) and isinstance(right, Sized):
        each = 1 if isinstance(left, str) else _PER_ITEM
        budget().allow((len(left) + len(right)) * each)
    else:
        _check_bits(max(_bits(left), _bits(right)))
    return left + right


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(bits: float) -> None:
    if bits > _MAX_BITS:
        raise TemplateError("the chat template computes a number of more than a thousand digits")
