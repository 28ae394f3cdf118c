"""A lock that is passed on in the order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A reentrant lock whose waiters come first: releasing hands it to the one that has waited longest.

    threading.RLock lets a thread that releases and takes it in a loop, as one that only calls `step` does, keep all
    others waiting for ever.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()  # held for a moment, never while waiting
        self._waiting: deque[tuple[int, threading.Lock]] = deque()  # (thread, released when it is its turn)
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner == me:
            self._depth += 1
            return
        with self._guard:
            if self._owner is None:
                self._owner, self._depth = me, 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append((me, turn))
        try:
            turn.acquire()
        except BaseException:  # an interrupt while waiting
            self._give_up(me, turn)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._pass_on()

    def _pass_on(self) -> None:
        with self._guard:
            if self._waiting:
                self._owner, turn = self._waiting.popleft()
                self._depth = 1
                turn.release()
            else:
                self._owner = None

    def _give_up(self, me: int, turn: threading.Lock) -> None:
        with self._guard:
            waiting = (me, turn) in self._waiting
            if waiting:
                self._waiting.remove((me, turn))
        if not waiting:  # it was handed over in the same moment
            self._depth = 0
            self._pass_on()
