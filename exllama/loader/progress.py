"""How long work tells its caller where it stands; how that is drawn is the caller's affair."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as progress("download SmolLM2", done, total) with bytes (or items) done; the last call has done == total.

    total is 0 while it is not known. A Progress may raise (KeyboardInterrupt): the work stops and cleans up.
    """

    def __call__(self, what: str, done: int, total: int) -> None: ...
