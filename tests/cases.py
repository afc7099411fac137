"""Operands worth testing, each for a reason."""

import platform
from dataclasses import dataclass

import torch

from v1fast import _eager as eager
from v1fast import functional


@dataclass(frozen=True)
class Case:
    """Shapes and regime of one call of a point readout; noise concerns the Gaussian readout alone."""

    why: str
    B: int = 3
    C: int = 20  # one full vector of lanes and a rest, in float32 and float64
    H: int = 6
    W: int = 9
    N: int = 11
    sigma: str | None = "full"
    noise: str | None = "seed"  # "seed", "tensor", or None for the mean positions
    share_noise: bool = False
    neuron_index: bool = False
    image_offset: int = 0
    bias: bool = True
    shift: bool = True
    align_corners: bool = True
    spread: float = 0.8  # range of mu or grid
    shift_scale: float = 0.1
    per_image: bool = False  # each image has positions of its own

    def __str__(self):
        return self.why.replace(" ", "-")


# A NaN among positions, where torch agrees about it: v1fast reads no pixel there. torch's grid_sample reads what the
# processor makes of NaN as a whole number, which is far outside on x86, and pixel 0 on ARM.
TORCH_NAN = (float("nan"),) if platform.machine() in ("x86_64", "AMD64") else ()

PLAIN = Case("plain")

SHAPES = (
    Case("one channel", C=1),
    Case("fewer channels than lanes", C=3),
    Case("exactly one vector", C=16),
    Case("many channels", C=131, N=3),
    Case("one row", H=1),
    Case("one column", W=1),
    Case("one pixel", H=1, W=1, align_corners=False),
    Case("no neuron", N=0),
    Case("one neuron", N=1),
    Case("no image", B=0),
    Case("one image", B=1),
    Case("neurons beyond every block", N=300, C=5),
    Case("many images", B=40, C=2, N=2),
)

REGIMES = (
    PLAIN,
    Case("uncorrelated", sigma="uncorrelated"),
    Case("isotropic", sigma="isotropic"),
    Case("no sigma", sigma=None, noise=None),
    Case("mean positions", noise=None),
    Case("explicit noise", noise="tensor"),
    Case("shared explicit noise", noise="tensor", share_noise=True),
    Case("shared seed", share_noise=True, image_offset=5),
    Case("neurons counted by index", neuron_index=True),
    Case("odd first image", image_offset=3),
    Case("pixel edges", align_corners=False),
    Case("nothing optional", bias=False, shift=False, noise=None, sigma=None),
    Case("most positions clamped", spread=1.5, shift=False),
    Case("shifted outside", shift_scale=1.5),
    *SHAPES,
    # enough of both for a kernel to reorder the neurons
    Case("many neurons and images", B=5, N=300, C=5, neuron_index=True, image_offset=1),
    Case("many neurons and given noise", B=5, N=260, C=3, noise="tensor", sigma="uncorrelated"),
    Case("many neurons at their means", B=4, N=200, C=17, noise=None, align_corners=False, spread=1.2),
)

# For the readouts whose positions are given and not clamped.
POINTS = (
    PLAIN,
    Case("positions per image", per_image=True),
    Case("positions per image, nothing else", per_image=True, shift=False, bias=False, align_corners=False),
    Case("pixel edges", align_corners=False),
    Case("nothing optional", bias=False, shift=False),
    Case("many positions outside", spread=1.5, shift=False),
    Case("many positions outside the edges", spread=1.5, align_corners=False),
    Case("shifted outside", shift_scale=1.5),
    *SHAPES,
    Case("many neurons and images", B=5, N=300, C=5),
    Case("many neurons, positions per image", B=4, N=200, C=17, per_image=True, spread=1.2),
    Case("many neurons at the same points of many images", B=11, N=300, C=21, shift=False, spread=1.2),
)

SEED = 2**63 - 12345  # both words of the key matter


def _sigma(case):
    shape = {"full": (case.N, 2, 2), "uncorrelated": (case.N, 2), "isotropic": (case.N, 1)}
    return None if case.sigma is None else 0.3 * torch.randn(shape[case.sigma], dtype=torch.float64)


def draw(case):
    """Operands in float64 and options of one call, from torch's generator, wherever the positions fall."""
    operands = {
        "features": torch.randn(case.B, case.C, case.H, case.W, dtype=torch.float64),
        "mu": case.spread * (2 * torch.rand(case.N, 2, dtype=torch.float64) - 1),
        "sigma": _sigma(case),
        "weight": torch.randn(case.N, case.C, dtype=torch.float64),
        "bias": torch.randn(case.N, dtype=torch.float64) if case.bias else None,
        "shift": case.shift_scale * torch.randn(case.B, 2, dtype=torch.float64) if case.shift else None,
    }
    images = 1 if case.share_noise else case.B
    options = {"share_noise": case.share_noise, "align_corners": case.align_corners, "image_offset": case.image_offset}
    if case.noise == "tensor":
        options["noise"] = torch.randn(images, case.N, 2, dtype=torch.float64).float()
    elif case.noise == "seed":
        options["seed"] = torch.tensor([SEED - torch.randint(1000, ()).item()])
    if case.neuron_index:
        options["neuron_index"] = torch.randperm(1000)[: case.N]
    return operands, options


def noise_of(case, options):
    """The normals that a call draws or is given, [B, N, 2] or [1, N, 2], for an implementation that draws none."""
    if case.noise != "seed":
        return options.get("noise")
    images, first = (1, 0) if case.share_noise else (case.B, case.image_offset)
    return functional.philox_normal(
        options["seed"], images, case.N, neuron_index=options.get("neuron_index"), image_offset=first
    )


def draw_points(case):
    """Operands in float64 and options of one call of a readout whose positions are given."""
    operands, _ = draw(case)
    mu = operands.pop("mu")
    operands.pop("sigma")
    if case.per_image:
        mu = case.spread * (2 * torch.rand(case.B, case.N, 2, dtype=torch.float64) - 1)
    operands = {"features": operands.pop("features"), "grid": mu, **operands}
    return operands, {"align_corners": case.align_corners}


def _clamped_positions(case, operands, options):
    noise = noise_of(case, options)
    noise = None if noise is None else noise.double()
    return eager.positions(operands["mu"], operands["sigma"], operands["shift"], noise, case.B)


def _given_positions(case, operands, options):
    grid, shift = operands["grid"], operands["shift"]
    return grid if shift is None else grid + shift[:, None]


def _distance_to_cell_border(case, p, exempt):
    """Smallest distance in pixels over positions [..., 2] that are not exempt: the gradient jumps there."""
    away = eager.distance_to_cell_border(p, case.H, case.W, case.align_corners)
    one_pixel = torch.tensor([case.W == 1, case.H == 1]) & case.align_corners  # a coordinate that does not matter
    away = away[~exempt & ~one_pixel]
    return away.amin().item() if away.numel() else 1.0


def _make(case, dtypes, others, draw, positions, exempt):
    """The first draw whose positions keep away from the borders of pixels.

    There, two right implementations may differ by a whole gradient.
    """
    torch.manual_seed(sum(map(ord, case.why)))
    for _ in range(100):
        operands, options = draw(case)
        operands = {k: None if v is None else v.to(dtypes.get(k, others)) for k, v in operands.items()}
        exact = {k: None if v is None else v.double() for k, v in operands.items()}
        p = positions(case, exact, options)
        if case.B == 0 or _distance_to_cell_border(case, p, exempt(p)) > 1e-5:
            return operands, options
    raise AssertionError(f"{case}: no draw keeps away from the borders")


def make(case, features=torch.float64, weight=torch.float64, others=torch.float64):
    """Operands in the given dtypes and options of one call; the same values for the same arguments."""
    dtypes = {"features": features, "weight": weight}
    return _make(case, dtypes, others, draw, _clamped_positions, lambda p: p.abs() == 1)  # exactly clamped


def make_points(case, features=torch.float64, weight=torch.float64, others=torch.float64):
    """As ``make``, for a readout whose positions are given."""
    dtypes = {"features": features, "weight": weight}
    return _make(case, dtypes, others, draw_points, _given_positions, lambda p: torch.zeros_like(p, dtype=torch.bool))
