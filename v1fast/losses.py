"""Losses for training: negative log-likelihoods of responses.

All take ``(output, target)``. ``output`` is the model's prediction: a tensor, or a tuple of parameters of a
distribution. ``target`` holds the responses [..., N], neurons last. Names, options and reductions are those of
neuralpredictors' ``measures``: ``avg`` gives the mean instead of the sum, over everything or, with ``per_neuron``, for
each neuron. One difference: NaN is not searched for in every step, because that would make a GPU wait.
:func:`check_responses` checks the responses once, when they are loaded or a fit begins.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import _choices

__all__ = ["BernoulliLoss", "GammaLoss", "GaussianLoss", "Loss", "PoissonLoss", "ZIGLoss", "check_responses"]

Support = Literal["real", "non-negative", "positive", "unit"]
_SUPPORTS = {
    "real": ("finite values", lambda r: r.isfinite()),
    "non-negative": ("finite values >= 0", lambda r: r.isfinite() & (r >= 0)),
    "positive": ("finite values > 0", lambda r: r.isfinite() & (r > 0)),
    "unit": ("values from 0 to 1", lambda r: (r >= 0) & (r <= 1)),
}


def check_responses(responses: Tensor, session: object = None, support: Support = "real") -> None:
    """Raise ValueError for responses that have no likelihood under a loss. Call it once per data set, not per step.

    Args:
        responses: of any shape.
        session: named in the message.
        support: "real" (finite, for a Gaussian), "non-negative" (Poisson, zero-inflated gamma), "positive" (gamma) or
            "unit" (from 0 to 1, Bernoulli). Each loss knows its own: ``loss.check_responses``.

    Raises:
        ValueError: some responses are outside the support; the message has the session, their number and the first
            one's index.
    """
    want, holds = _choices.pick("support", support, _SUPPORTS)
    responses = torch.as_tensor(responses)
    bad = ~holds(responses)
    count = int(bad.sum())
    if count == 0:
        return
    index = tuple(bad.nonzero()[0].tolist())
    where = "responses" if session is None else f"responses of session {session}"
    raise ValueError(
        f"{where}: want {want}, got {count} of {responses.numel()} others, "
        f"the first at {index}: {responses[index].item()}"
    )


class Loss(nn.Module):
    """Base class. Reduces one loss value per response to a sum or a mean.

    Args:
        per_neuron: return one value per neuron [N] rather than one for all.
        avg: mean rather than sum.

    Attributes:
        support: of the responses, see :func:`check_responses`.
    """

    support: ClassVar[Support]

    def __init__(self, per_neuron: bool = False, avg: bool = True) -> None:
        super().__init__()
        self.per_neuron, self.avg = per_neuron, avg

    def check_responses(self, responses: Tensor, session: object = None) -> None:
        """Call :func:`check_responses` with the support of this loss."""
        check_responses(responses, session, self.support)

    def reduced(self, loss: Tensor) -> Tensor:
        """Return the mean or sum of [..., N]: a scalar, or [N] with ``per_neuron``."""
        if self.per_neuron:
            loss = loss.reshape(-1, loss.shape[-1])
            return loss.mean(0) if self.avg else loss.sum(0)
        return loss.mean() if self.avg else loss.sum()

    def extra_repr(self) -> str:
        """Return the options that ``print`` shows."""
        return f"per_neuron={self.per_neuron}, avg={self.avg}"


class PoissonLoss(Loss):
    """rate - target log(rate + bias), in nats.

    Args:
        bias: keeps the logarithm finite where the rate is 0. 1e-12 as in neuralpredictors 0.3.0; its main branch has
            1e-8.
        per_neuron, avg: see :class:`Loss`.
        full_loss: add log(target!) by Stirling's approximation for targets above 1, like ``torch.nn.PoissonNLLLoss``.
            This is for reports and does not change the fit.
    """

    support = "non-negative"

    def __init__(
        self, bias: float = 1e-12, per_neuron: bool = False, avg: bool = True, full_loss: bool = False
    ) -> None:
        super().__init__(per_neuron, avg)
        self.bias, self.full_loss = bias, full_loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss for rates >= 0 and responses, both [..., N]: a scalar, or [N]."""
        target = target.detach()
        loss = F.poisson_nll_loss(output, target, log_input=False, full=self.full_loss, eps=self.bias, reduction="none")
        return self.reduced(loss)


class BernoulliLoss(Loss):
    """-target log p - (1 - target) log(1 - p), in nats. Logarithms are at least -100, as in ``torch.nn.BCELoss``.

    Args:
        logits: output is log(p / (1 - p)) rather than p, which is exact for any p.
        per_neuron, avg: see :class:`Loss`.
    """

    support = "unit"

    def __init__(self, per_neuron: bool = False, avg: bool = True, logits: bool = False) -> None:
        super().__init__(per_neuron, avg)
        self.logits = logits

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss for probabilities or logits, and spikes, both [..., N]: a scalar, or [N]."""
        of = F.binary_cross_entropy_with_logits if self.logits else F.binary_cross_entropy
        return self.reduced(of(output, target.detach().to(output.dtype), reduction="none"))


class GaussianLoss(Loss):
    """(target - mean)^2 / (2 variance) + log(2 pi variance) / 2, in nats. For z-scored responses.

    Args:
        per_neuron, avg: see :class:`Loss`.
    """

    support = "real"

    def forward(self, output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Return the loss for (mean, variance > 0) and responses, [..., N] each or broadcast: a scalar, or [N]."""
        mean, variance = output
        return self.reduced((target.detach() - mean).square() / (2 * variance) + (2 * math.pi * variance).log() / 2)


class GammaLoss(Loss):
    """-log Gamma(target; concentration, rate), in nats.

    Args:
        per_neuron, avg: see :class:`Loss`.
        eps_shift_targets: added to the targets. A gamma density has no finite likelihood at 0, so ``check_responses``
            refuses such responses. The shift is neuralpredictors'; it has no other effect.
    """

    support = "positive"

    def __init__(self, per_neuron: bool = False, avg: bool = True, eps_shift_targets: float = 1e-10) -> None:
        super().__init__(per_neuron, avg)
        self.eps_shift_targets = eps_shift_targets

    def forward(self, output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Return the loss for (concentration, rate), both > 0, and responses, [..., N] each: a scalar, or [N]."""
        k, rate = output
        y = target.detach() + self.eps_shift_targets
        return self.reduced(torch.lgamma(k) - k * rate.log() - (k - 1) * y.log() + rate * y)


class ZIGLoss(Loss):
    """Zero-inflated gamma for deconvolved calcium traces: a uniform part up to loc, and a gamma density above it.

    The loss is -log of (1 - q) / loc where target <= loc, and of q Gamma(target - loc; k, theta) elsewhere, with scale
    theta (Wei et al., "A zero-inflated gamma model for deconvolved calcium imaging traces", Neurons, Behavior, Data
    analysis, and Theory 2020).

    Args:
        avg: as in neuralpredictors, where it is False by default. Each part is averaged over its own responses, per
            neuron. So the rarer part has a larger weight than in the likelihood.
        per_neuron: see :class:`Loss`.
        return_logdet: also return the logarithm of the determinant of the responses' transformation, which is 0.
    """

    support = "non-negative"

    def __init__(self, avg: bool = False, per_neuron: bool = False, return_logdet: bool = False) -> None:
        super().__init__(per_neuron, avg)
        self.return_logdet = return_logdet

    def forward(self, output: Any, target: Any, **kwargs: Any) -> Any:
        """Return the loss for (theta, k, loc, q) and responses, [B, N] each: a scalar, or [N].

        loc and q may be [1, N]. A trained loc is clamped between 0 and the neuron's largest response, then below the
        smallest response above it. The two arguments may also come in neuralpredictors' order, target first.
        """
        if isinstance(output, Tensor) and not isinstance(target, Tensor):
            output, target = target, output
        theta, k, loc, q = output
        target = target.detach()
        if loc.requires_grad:
            loc = _held(loc, torch.zeros_like(loc), target.amax(0))
        slab = target > loc
        spike = torch.where(slab, 0.0, torch.log(1 - q) - loc.log())
        if loc.requires_grad:
            above = torch.where(slab, target, torch.inf).amin(0)
            loc = _held(loc, torch.zeros_like(loc), torch.where(above.isinf(), target.amax(0), above * 0.999))
        # Without a gamma part, any positive number keeps the gradient finite.
        y = torch.where(slab, target - loc, 1.0)
        gamma = q.log() + (k - 1) * y.log() - y / theta - k * theta.log() - torch.lgamma(k)
        loss = -(self._part(spike, ~slab) + self._part(torch.where(slab, gamma, 0.0), slab))
        loss = loss if self.per_neuron else loss.mean() if self.avg else loss.sum()
        return (loss, 0) if self.return_logdet else loss

    def _part(self, values: Tensor, there: Tensor) -> Tensor:
        """Return the sum or mean [N] over the responses of a part."""
        return values.sum(0) / there.sum(0).clamp_min(1) if self.avg else values.sum(0)


def _held(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp values, but pass the gradient through, so that they can return from outside the bounds."""
    return values + (values.clamp(low, high) - values).detach()
