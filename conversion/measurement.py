"""What rounding each linear costs at the end: a second-order estimate of the divergence of the model's output.

Rounding a matrix by an error E moves the logits of a sequence; to second order KL(model || rounded model) is half the
mean square of <E, G>, with G the gradient of the log-likelihood of tokens drawn from the model itself (the Fisher
information; Kunstner et al. 2019, "Limitations of the empirical Fisher approximation", section 2). Quantizers that feed
errors forward (GPTQ, LDLQ) leave E = N L^-1 with white N and H = L D L^T (Chee et al. 2023, QuIP, section 3), hence

    KL per token = 1/2 * distortion * mean over sequences of sum_i w2_i |L^-1 G_i^T|^2 / tokens

with w2_i the mean square of row i and `distortion` the quantizer's relative square error on Gaussian numbers. One walk
forward and one back over a few rows measure all linears at once, a module in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from exllama.layers.module import Module
from exllama.loader.progress import Progress

from .allocation import Option, allocate
from .forward import run_head, run_module
from .hessians import Hessians
from .quantizer import Quantizer
from .source import HEAD, Matrix, SourceModel

DAMPING = 0.01  # of the mean diagonal
_SAMPLE = (128, 256)  # of Gaussian numbers, whose blocks and tiles are whole in every format


@dataclass(frozen=True)
class Sensitivity:
    """kl: nats per token for a relative square error of 1, to first order. Shape as in the model."""

    out_features: int
    in_features: int
    kl: float


def distortions(quantizer: Quantizer, seed: int = 0) -> dict[float, float]:
    """rate -> mean square error of Gaussian numbers of variance 1, as this quantizer rounds them."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(_SAMPLE, generator=generator)
    identity = torch.eye(_SAMPLE[1])

    def error(rate: float) -> float:
        rounded = quantizer.quantize(numbers, identity, rate, seed).weight
        return float((rounded - numbers).double().square().mean())

    return {rate: error(rate) for rate in quantizer.rates}


def measure(
    source: SourceModel,
    ids: torch.Tensor,
    known: dict[str, Sensitivity],
    save: Callable[[dict[str, Sensitivity]], None],
    progress: Progress | None = None,
) -> dict[str, Sensitivity]:
    """The sensitivity of every linear, the head too. ids: (S, T) int64, whose sequences count alike.

    known: what an earlier run has saved and is not measured again; save: given all that is known after each module.
    """
    inputs, width = [], source.config.hidden_size
    hidden: torch.Tensor | None = None
    forward, backward = source.modules()[::-1], source.modules()
    total = 2 * len(backward)
    while len(forward) > 1:
        module = forward.pop()
        source.load(module)
        with torch.no_grad():
            hidden = torch.cat([run_module(module, *rows, width) for rows in _sequences(ids, hidden)])
        inputs.append(hidden)
        _tell(progress, len(inputs), total)
    found = dict(known)
    gradient: torch.Tensor | None = None
    while inputs:
        module = backward.pop()
        state = _Module(module, source.load(module), ids, inputs.pop(), gradient)
        gradient, measured = state.measure({key for key in state.matrices if key not in found}, width)
        found |= measured
        save(found)
        _tell(progress, total - len(inputs), total)
    return found


def choose_rates(
    sensitivities: dict[str, Sensitivity], distortion: dict[float, float], quantizer: Quantizer, bits: float
) -> dict[str, float]:
    """The rates of all linears but the head that diverge least within `bits` stored bits per weight on average.

    Raises ConversionError when the format cannot go as low.
    """
    names = [name for name in sensitivities if name != HEAD]
    items, weights = [], 0
    for name in names:
        s = sensitivities[name]
        size = s.out_features * s.in_features
        weights += size
        cost = {rate: s.kl * distortion[rate] for rate in quantizer.rates}
        items.append(
            [
                Option(cost[rate], stored_bits(quantizer, s.out_features, s.in_features, rate))
                for rate in quantizer.rates
            ]
        )
    return {name: quantizer.rates[k] for name, k in zip(names, allocate(items, int(bits * weights)), strict=True)}


def stored_bits(quantizer: Quantizer, out_features: int, in_features: int, rate: float) -> int:
    """Bits of a whole matrix."""
    return round(quantizer.bits(out_features, in_features, rate) * out_features * in_features)


class _Module:
    """A module with its input (S, T, width) and the gradient of its output, None at the end of the model."""

    def __init__(
        self,
        module: Module,
        matrices: dict[str, Matrix],
        ids: torch.Tensor,
        hidden: torch.Tensor,
        gradient: torch.Tensor | None,
    ) -> None:
        self.module, self.matrices, self.ids, self.hidden, self.gradient = module, matrices, ids, hidden, gradient

    def measure(self, wanted: set[str], width: int) -> tuple[torch.Tensor, dict[str, Sensitivity]]:
        """The gradient of the module's input, and what was wanted."""
        factors = self._factors(wanted, width)
        for key in wanted:
            self.matrices[key].values.requires_grad_(True)
        sums = dict.fromkeys(sorted(wanted), 0.0)
        gradients = []
        for row in range(len(self.ids)):
            x = self.hidden[row : row + 1].clone().requires_grad_(True)
            leaves = [x, *(self.matrices[key].values for key in sums)]
            found = self._gradients(row, x, leaves, width)
            gradients.append(found[0])
            for key, gradient in zip(sums, found[1:], strict=True):
                sums[key] += _expected_square(gradient, self.matrices[key].values.detach(), factors[key])
        tokens = self.ids.numel()
        return torch.cat(gradients), {
            key: Sensitivity(self.matrices[key].out_features, self.matrices[key].in_features, 0.5 * value / tokens)
            for key, value in sums.items()
        }

    def _factors(self, wanted: set[str], width: int) -> dict[str, torch.Tensor]:
        """The unit lower L of H = L D L^T for each linear."""
        if not wanted:
            return {}
        seen = Hessians()
        with torch.no_grad():
            for ids, hidden in _sequences(self.ids, self.hidden):
                assert hidden is not None
                if self.gradient is None:
                    run_head(self.module, ids, hidden, seen.observe, want=False)
                else:
                    run_module(self.module, ids, hidden, width, seen.observe)
        made: dict[int, torch.Tensor] = {}
        for key in wanted:
            moments = seen[key]
            if id(moments) not in made:
                made[id(moments)] = _unit_factor(moments.hessian())
        return {key: made[id(seen[key])] for key in wanted}

    def _gradients(self, row: int, x: torch.Tensor, leaves: list[torch.Tensor], width: int) -> tuple[torch.Tensor, ...]:
        ids = self.ids[row : row + 1]
        if self.gradient is not None:
            out = run_module(self.module, ids, x, width)
            return torch.autograd.grad(out, leaves, self.gradient[row : row + 1])
        logits = run_head(self.module, ids, x)
        generator = torch.Generator(logits.device).manual_seed(row)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
        return torch.autograd.grad(loss, leaves)


def _expected_square(gradient: torch.Tensor, weight: torch.Tensor, factor: torch.Tensor) -> float:
    """E <N L^-1, G>^2 for white N whose variance in row i is the mean square of the weight's row i."""
    shaped = torch.linalg.solve_triangular(factor, gradient.T, upper=False, unitriangular=True)
    return float((weight.square().mean(1) * shaped.square().sum(0)).double().sum())


def _unit_factor(hessian: torch.Tensor) -> torch.Tensor:
    """L of L D L^T with a damped diagonal; the identity for a zero matrix."""
    damp = DAMPING * float(hessian.diagonal().mean())
    eye = torch.eye(len(hessian), device=hessian.device)
    if damp <= 0:
        return eye
    lower: torch.Tensor = torch.linalg.cholesky(hessian.double() + damp * eye.double())
    return (lower / lower.diagonal()).float()


def _sequences(ids: torch.Tensor, hidden: torch.Tensor | None) -> Iterable[tuple[torch.Tensor, torch.Tensor | None]]:
    """One sequence after the other."""
    return ((ids[row : row + 1], None if hidden is None else hidden[row : row + 1]) for row in range(len(ids)))


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress:
        progress("measure", done, total)
