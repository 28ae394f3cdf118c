"""Second moments of what goes into each linear, gathered while calibration rows stream through a module."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Moments:
    """The sum of x x^T over rows x, (K, K) float64, and their number. Rows that are not finite are only counted."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.sum = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.rows = self.left_out = 0

    def add(self, x: torch.Tensor) -> None:
        """x: (rows, K) float32. Products of one call are summed in float32, calls in float64."""
        finite = torch.isfinite(x).all(1)
        used = x if bool(finite.all()) else x[finite]
        product = used.T @ used
        if not bool(torch.isfinite(product).all()):  # squares beyond float32
            product = used.double().T @ used.double()
        self.sum += product
        self.rows += len(used)
        self.left_out += len(x) - len(used)

    def hessian(self) -> torch.Tensor:
        """The mean of x x^T, (K, K) float32; zero when there was no row. What float32 cannot hold is scaled to 1."""
        mean = self.sum / max(self.rows, 1)
        largest = float(mean.diagonal().max()) if len(mean) else 0.0
        return (mean if largest < 1e30 else mean / largest).float()


class Hessians:
    """The moments of all linears of a module; linears that share an input share their moments."""

    def __init__(self) -> None:
        self._of: dict[str, Moments] = {}

    def observe(self, keys: Sequence[str], x: torch.Tensor) -> None:
        """See forward.Observe."""
        if keys[0] not in self._of:
            shared = Moments(x.shape[-1], x.device)
            self._of |= dict.fromkeys(keys, shared)
        self._of[keys[0]].add(x)

    def __getitem__(self, key: str) -> Moments:
        return self._of[key]

    def names(self) -> list[str]:
        """Names of the linears, in the order in which they are computed."""
        return list(self._of)
