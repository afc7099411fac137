"""Operands of more than 2^31 elements, where an offset of 32 bits would be wrong: right, and how fast."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from v1fast import functional

from .record import Part
from .timing import times


def main(part: Part) -> None:
    """One map and one matrix."""
    for name, measure in (("features", _features), ("matrix", _matrix)):
        if part.begin(name):
            with part.guarded(name):
                measure(part)
        torch.cuda.empty_cache()


def _features(part: Part) -> None:
    sizes = (2, 16, 8, 10) if part.quick else (64, 2048, 128, 130)  # 2.2e9
    x = torch.randn(sizes, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    neurons, channels = 32, sizes[1]
    mu = 1.8 * torch.rand(neurons, 2, device="cuda") - 0.9
    weight = torch.randn(neurons, channels, device="cuda")
    call = lambda: functional.gaussian_readout(x, mu, None, weight, None)  # noqa: E731
    sampled = F.grid_sample(x[-1:].double(), mu.double()[None, :, None], align_corners=True)[0, ..., 0]
    want = (sampled * weight.double().T).sum(0)
    error = (call()[-1].double() - want).norm() / want.norm()
    shape = dict(zip("BCHW", sizes, strict=True)) | {"N": neurons}
    part.add(
        key="features",
        case="features",
        shape=shape,
        elements=x.numel(),
        error=error.item(),
        **times([call], part.quick),
    )


def _matrix(part: Part) -> None:
    rows, columns = (20, 16) if part.quick else (50_000, 64)  # 2.5e9
    x = torch.randn(rows, columns, device="cuda")
    found = functional.rdm(x)
    i, j = torch.randint(rows, (2, 2000), device="cuda")
    i[:2], j[:2] = rows - 1, torch.tensor([0, rows - 2], device="cuda")  # beyond 2^31
    unit = x.double() - x.double().mean(1, keepdim=True)
    unit = unit / unit.norm(dim=1, keepdim=True)
    want = 1 - (unit[i] * unit[j]).sum(1)
    want = torch.where(i == j, 0.0, want)
    error = (found[i, j].double() - want).abs().max()
    shape, elements = {"S": rows, "N": columns}, found.numel()
    del found
    call = lambda: functional.rdm(x)  # noqa: E731
    part.add(
        key="matrix", case="matrix", shape=shape, elements=elements, error=error.item(), **times([call], part.quick)
    )
