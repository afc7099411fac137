"""Networks that decode stimuli from responses, and the formulas of their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from v1fast import _choices

Function = Callable[[Tensor], Tensor]


def _logistic_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * (1 - torch.sigmoid(x))


ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "none": (lambda x: x, torch.ones_like),
    "relu": (torch.relu, lambda x: (x > 0).to(x.dtype)),
    "tanh": (torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    "sigmoid": (torch.sigmoid, _logistic_slope),
}
"""Name -> function and its derivative."""


class DeepNet(nn.Module):
    """Responses -> hidden layers -> outputs.

    ``inputs -> width -> ... -> width -> outputs``, all layers linear with a bias. Without an activation the whole is a
    linear decoder, however deep; with ``depth=0`` it is written as one.

    Args:
        inputs: N >= 1, neurons.
        width: M >= 1, units of a hidden layer.
        outputs: K >= 1.
        depth: hidden layers, >= 0.
        activation: after each hidden layer: none, relu, tanh or sigmoid.

    Raises:
        ValueError: an argument out of range.

    >>> DeepNet(50, 10)(torch.zeros(3, 50)).shape
    torch.Size([3, 1])
    """

    def __init__(
        self, inputs: int, width: int = 200, *, outputs: int = 1, depth: int = 1, activation: str = "none"
    ) -> None:
        super().__init__()
        for name, value, least in (("inputs", inputs, 1), ("width", width, 1), ("outputs", outputs, 1)):
            if value < least:
                raise ValueError(f"{name}: want >= {least}, got {value}")
        if depth < 0:
            raise ValueError(f"depth: want >= 0, got {depth}")
        _choices.one_of("activation", activation, ACTIVATIONS)
        self.activation = activation
        sizes = [inputs, *[width] * depth, outputs]
        self.layers = nn.ModuleList(nn.Linear(sizes[k], sizes[k + 1]) for k in range(depth + 1))

    def forward(self, responses: Tensor) -> Tensor:
        """[S, N] -> [S, K]."""
        return self._passes(responses)[0]

    def _passes(self, responses: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Output [S, K]; the input of each layer; what each hidden layer passes to the activation."""
        function, _ = ACTIVATIONS[self.activation]
        inputs, sums = [responses], []
        for layer in self.layers[:-1]:
            sums.append(layer(inputs[-1]))
            inputs.append(function(sums[-1]))
        return self.layers[-1](inputs[-1]), inputs, sums


class DeepNetReLU(DeepNet):
    """:class:`DeepNet` with rectified hidden units.

    >>> sum(p.numel() for p in DeepNetReLU(50, 10).parameters())
    521
    """

    def __init__(self, inputs: int, width: int = 200, *, outputs: int = 1, depth: int = 1) -> None:
        super().__init__(inputs, width, outputs=outputs, depth=depth, activation="relu")


class DeepNetSoftmax(DeepNet):
    """A :class:`DeepNet` whose outputs are the logarithms of the probabilities of classes, [S, K].

    >>> DeepNetSoftmax(50, 20, outputs=4)(torch.zeros(1, 50)).exp().sum().round().item()
    1.0
    """

    def forward(self, responses: Tensor) -> Tensor:
        """[S, N] -> [S, K]."""
        return torch.log_softmax(super().forward(responses), 1)


def written_gradients(network: DeepNet, responses: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The gradients of the mean loss by their formulas, layer by layer, without autograd.

    With h the input of a layer, the gradient of its weights is d^T h, where d is the gradient of the loss with respect
    to what the layer returns. At the output d = 2 (y - target) / S for the squared error, or (p - 1 at the class) / S
    for the cross-entropy of a :class:`DeepNetSoftmax`. One layer below, d is d W times the slope of the activation.

    Args:
        network: any of this module.
        responses: [S, N].
        targets: [S, K] for the squared error, which is summed over K; [S], classes, for a :class:`DeepNetSoftmax`.

    Returns:
        Name of a parameter -> its gradient.
    """
    with torch.no_grad():
        output, inputs, sums = network._passes(responses)
        if isinstance(network, DeepNetSoftmax):
            wanted = nn.functional.one_hot(targets.long(), output.shape[1]).to(output.dtype)
            error = (torch.softmax(output, 1) - wanted) / len(responses)
        else:
            error = 2 * (output - targets) / len(responses)
        slope = ACTIVATIONS[network.activation][1]
        found: dict[str, Tensor] = {}
        for number in reversed(range(len(network.layers))):
            found[f"layers.{number}.weight"] = error.T @ inputs[number]
            found[f"layers.{number}.bias"] = error.sum(0)
            if number:
                layer: Any = network.layers[number]
                error = (error @ layer.weight) * slope(sums[number - 1])
    return found
