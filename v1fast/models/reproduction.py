"""The released Sensorium model of mouse V1 against what its original implementation computes."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v1fast import _eager, _files, functional
from v1fast.models.cores import Stacked2dCore
from v1fast.models.pretrained import MOUSE_V1, load_mouse_v1
from v1fast.readouts import FullGaussian2d

EXPECTED = Path("sensorium_mouse_v1/sensorium_sota_expected.npz")
# Bounds of the largest error, relative to the largest magnitude. Both sides round to float32 (6e-8) and add in
# different orders; where terms cancel, an element may be off by more than its own size, so that a bound on each
# element's own relative error would mean nothing. Largest seen: 5e-7 forward and, in the gradients, each a sum over up
# to 6 x 7776 outputs, 1.2e-6. Some twenty and a hundred times that leaves room for other compilers and instruction
# sets, while one feature weight in 7776 x 64, off by a ten-thousandth of the largest, exceeds the first.
FORWARD_BOUND, GRADIENT_BOUND = 1e-5, 1e-4
ROUNDING_PIXELS = 5e-6  # of a float32 position in a map 56 pixels wide


class MismatchError(RuntimeError, ValueError):
    """The trained model computes something else than its original implementation."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One quantity, computed here and by the original implementation.

    Attributes:
        quantity: its name in the file of expected values.
        largest_error: largest absolute difference; NaN if an element is NaN.
        largest_magnitude: largest absolute expected value.
        relative_error: the ratio of the two.
        bound: what ``relative_error`` may be.
    """

    quantity: str
    largest_error: float
    largest_magnitude: float
    relative_error: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the bound; false for NaN."""
        return self.relative_error <= self.bound


def check_trained_model(folder: Path) -> list[Comparison]:
    """Compare responses, sampled responses and gradients with those of neuralpredictors 0.3.0.

    Args:
        folder: holds ``sensorium_mouse_v1/``.

    Returns:
        One comparison for each quantity; see :func:`require_match`.
    """
    core, readout = load_mouse_v1(folder / MOUSE_V1)
    with _files.reading(folder / EXPECTED), np.load(folder / EXPECTED) as arrays:
        expected = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    with torch.no_grad():
        features = core(expected["x"])
        forward = {"core_mean": features.mean((2, 3)), "y": F.elu(readout(features)) + 1}
    attempts = []
    for side in (0, 1, -1):
        sampled, gradients = _sampled_step(core, readout, expected, side)
        attempts.append(
            [
                _compare(name, found[name], expected[name], bound)
                for found, bound in ((forward | {"y_sampled": sampled}, FORWARD_BOUND), (gradients, GRADIENT_BOUND))
                for name in found
            ]
        )
        if all(comparison.holds for comparison in attempts[-1]):
            return attempts[-1]
    return attempts[0]


def require_match(comparisons: list[Comparison]) -> None:
    """Raise :class:`MismatchError` naming what is out of bounds, if anything is."""
    failed = [c for c in comparisons if not c.holds]
    if failed:
        listed = "; ".join(
            f"{c.quantity}: want relative error <= {c.bound:g}, got {c.relative_error:.2g}" for c in failed
        )
        raise MismatchError(f"the trained model of mouse V1 does not match its original implementation: {listed}")


def _sampled_step(
    core: Stacked2dCore, readout: FullGaussian2d, expected: dict[str, Tensor], side: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Responses at the positions that the file's noise gives, and the gradients of their weighted sum.

    At the centre of a pixel the derivative by position jumps. Where a position lies so near to one that a last bit
    decides between two right answers (one or two of the 93312 do), a ``side`` of 1 or -1 moves it off to that side.
    """
    images = expected["x"].clone().requires_grad_()
    # Scaled, because the trained sigmas are so small that the noise would hardly matter.
    sigma = (readout.sigma * expected["sigma_scale"].float()).detach().requires_grad_()
    noise, mu = expected["noise"].squeeze(2), readout.mu[0, :, 0]
    _, height, width = readout.in_shape
    with torch.no_grad():
        position = _eager.positions(mu, sigma[0], None, noise, len(images))
        near = _eager.distance_to_cell_border(position, height, width) < ROUNDING_PIXELS
    responses = functional.gaussian_readout(
        core(images),
        mu + side * near.any(0) * 1e-6,  # 3e-5 pixels
        sigma[0],
        readout.features[0, :, 0].T,
        readout.bias,
        noise=noise,
    )
    wanted = {
        "d_x": images,
        "d_sigma": sigma,
        "d_features_first256": readout.features,
        "d_bias": readout.get_parameter("bias"),
        "d_mu_transform_0_weight": readout.get_parameter("mu_transform.0.weight"),
    }
    grads = torch.autograd.grad(responses, list(wanted.values()), expected["grad_output"])
    gradients = dict(zip(wanted, grads, strict=True))
    gradients["d_features_first256"] = gradients["d_features_first256"][..., :256]
    return responses.detach(), gradients


def _compare(quantity: str, found: Tensor, expected: Tensor, bound: float) -> Comparison:
    if found.shape != expected.shape:
        raise MismatchError(f"{quantity}: want {tuple(expected.shape)}, got {tuple(found.shape)}")
    error, magnitude = (found - expected).abs().max().item(), expected.abs().max().item()
    return Comparison(quantity, error, magnitude, error / magnitude, bound)
