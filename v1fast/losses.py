"""Losses: negative log-likelihoods of responses, to train by.

All take ``(output, target)``, output being what the model predicts (a tensor, or a tuple of parameters of a
distribution) and target the responses, [..., N] with neurons last. By name, options and reductions they are those of
neuralpredictors' ``measures``: ``avg`` gives the mean rather than the sum, over everything or, with ``per_neuron``, for
each neuron. What differs: a NaN is not looked for in every step, where that would make a GPU wait.
:func:`check_responses` looks at the responses once, when they are loaded or a fit begins.
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
    """Refuse responses that a loss has no likelihood for: when data are loaded or a fit begins, not in each step.

    Args:
        responses: of any shape.
        session: named in the message.
        support: "real" (finite, for a Gaussian), "non-negative" (Poisson, zero-inflated gamma), "positive" (gamma) or
            "unit" (from 0 to 1, Bernoulli). A loss knows its own: ``loss.check_responses``.

    Raises:
        ValueError: some are not; the message has the session, their number and the first one's index.
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
    """Base class: from a value for each response to what a reduction makes of them.

    Args:
        per_neuron: one value for each neuron [N] rather than one in all.
        avg: mean rather than sum.

    Attributes:
        support: of the responses, see :func:`check_responses`.
    """

    support: ClassVar[Support]

    def __init__(self, per_neuron: bool = False, avg: bool = True) -> None:
        super().__init__()
        self.per_neuron, self.avg = per_neuron, avg

    def check_responses(self, responses: Tensor, session: object = None) -> None:
        """See :func:`check_responses`, with the support of this loss."""
        check_responses(responses, session, self.support)

    def reduced(self, loss: Tensor) -> Tensor:
        """Mean or sum of [..., N]: a scalar, or [N] with ``per_neuron``."""
        if self.per_neuron:
            loss = loss.reshape(-1, loss.shape[-1])
            return loss.mean(0) if self.avg else loss.sum(0)
        return loss.mean() if self.avg else loss.sum()

    def extra_repr(self) -> str:
        """What ``print`` shows of the options."""
        return f"per_neuron={self.per_neuron}, avg={self.avg}"


class PoissonLoss(Loss):
    """rate - target log(rate + bias), in nats.

    Args:
        bias: keeps the logarithm finite where the rate is 0: 1e-12 as in neuralpredictors 0.3.0; its main branch has
            1e-8.
        per_neuron, avg: see :class:`Loss`.
        full_loss: add log(target!) by Stirling's approximation for targets above 1, as ``torch.nn.PoissonNLLLoss``
            does: for reports, it does not change the fit.
    """

    support = "non-negative"

    def __init__(
        self, bias: float = 1e-12, per_neuron: bool = False, avg: bool = True, full_loss: bool = False
    ) -> None:
        super().__init__(per_neuron, avg)
        self.bias, self.full_loss = bias, full_loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Rates >= 0 and responses, [..., N] both, to the loss: a scalar, or [N]."""
        target = target.detach()
        loss = F.poisson_nll_loss(output, target, log_input=False, full=self.full_loss, eps=self.bias, reduction="none")
        return self.reduced(loss)


class BernoulliLoss(Loss):
    """-target log p - (1 - target) log(1 - p), in nats, logarithms from -100 on as in ``torch.nn.BCELoss``.

    Args:
        logits: output is log(p / (1 - p)) rather than p, which is exact for any p.
        per_neuron, avg: see :class:`Loss`.
    """

    support = "unit"

    def __init__(self, per_neuron: bool = False, avg: bool = True, logits: bool = False) -> None:
        super().__init__(per_neuron, avg)
        self.logits = logits

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Probabilities or logits, and spikes, [..., N] both, to the loss: a scalar, or [N]."""
        of = F.binary_cross_entropy_with_logits if self.logits else F.binary_cross_entropy
        return self.reduced(of(output, target.detach().to(output.dtype), reduction="none"))


class GaussianLoss(Loss):
    """(target - mean)^2 / (2 variance) + log(2 pi variance) / 2, in nats. For z-scored responses.

    Args:
        per_neuron, avg: see :class:`Loss`.
    """

    support = "real"

    def forward(self, output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """(mean, variance > 0) and responses, [..., N] each or broadcast to it, to the loss: a scalar, or [N]."""
        mean, variance = output
        return self.reduced((target.detach() - mean).square() / (2 * variance) + (2 * math.pi * variance).log() / 2)


class GammaLoss(Loss):
    """-log Gamma(target; concentration, rate), in nats.

    Args:
        per_neuron, avg: see :class:`Loss`.
        eps_shift_targets: added to the targets. At 0 a gamma density has no finite likelihood: ``check_responses``
            refuses such responses, the shift is neuralpredictors' and does nothing to others.
    """

    support = "positive"

    def __init__(self, per_neuron: bool = False, avg: bool = True, eps_shift_targets: float = 1e-10) -> None:
        super().__init__(per_neuron, avg)
        self.eps_shift_targets = eps_shift_targets

    def forward(self, output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """(concentration, rate), both > 0, and responses, [..., N] each, to the loss: a scalar, or [N]."""
        k, rate = output
        y = target.detach() + self.eps_shift_targets
        return self.reduced(torch.lgamma(k) - k * rate.log() - (k - 1) * y.log() + rate * y)


class ZIGLoss(Loss):
    """Zero-inflated gamma of deconvolved calcium traces: a uniform part up to loc, a gamma density above.

    -log of (1 - q) / loc where target <= loc, and of q Gamma(target - loc; k, theta), theta the scale, elsewhere (Wei
    et al., "A zero-inflated gamma model for deconvolved calcium imaging traces", Neurons, Behavior, Data analysis, and
    Theory 2020).

    Args:
        avg: as in neuralpredictors, where it is False by default: each part is averaged over the responses that it is
            for, neuron by neuron, so that the rarer part weighs more than in the likelihood.
        per_neuron: see :class:`Loss`.
        return_logdet: also return the logarithm of the determinant of the responses' transformation, which is 0.
    """

    support = "non-negative"

    def __init__(self, avg: bool = False, per_neuron: bool = False, return_logdet: bool = False) -> None:
        super().__init__(per_neuron, avg)
        self.return_logdet = return_logdet

    def forward(self, output: Any, target: Any, **kwargs: Any) -> Any:
        """(theta, k, loc, q) and responses, [B, N] each, to the loss: a scalar, or [N].

        Loc and q may be [1, N]. A loc that is trained is held between 0 and the neuron's largest response, and then
        below the smallest one above it. The two arguments may come in neuralpredictors' order, target first.
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
        # Where there is no gamma part, any positive number keeps its gradient finite.
        y = torch.where(slab, target - loc, 1.0)
        gamma = q.log() + (k - 1) * y.log() - y / theta - k * theta.log() - torch.lgamma(k)
        loss = -(self._part(spike, ~slab) + self._part(torch.where(slab, gamma, 0.0), slab))
        loss = loss if self.per_neuron else loss.mean() if self.avg else loss.sum()
        return (loss, 0) if self.return_logdet else loss

    def _part(self, values: Tensor, there: Tensor) -> Tensor:
        """[N]: sum or mean over the responses that a part is for."""
        return values.sum(0) / there.sum(0).clamp_min(1) if self.avg else values.sum(0)


def _held(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values within bounds; the gradient is that without them, so that they can come back."""
    return values + (values.clamp(low, high) - values).detach()
