"""The kernels of dissimilarity matrices: times and errors, beside torch's own, floors and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from v1fast import functional

from .. import bench_rdm as bench
from .. import gpu_costs_rdm as sheet
from ..gpu_costs import HALF_FLOPS
from .ceilings import Rates
from .record import Part
from .steps import line


def sizes_of(quick: bool) -> dict[str, tuple[int, int]]:
    """Return rows and columns of the cases, or of as small ones."""
    return {"12 x 40": (12, 40), "9 x 17": (9, 17)} if quick else sheet.CASES


def figures(passes: Sequence[sheet.Pass], rates: Rates) -> dict[str, Any]:
    """Return in us: the floor of bytes and operations, and the prediction of docs/gpu.md."""
    faster = rates.of("product in float16", HALF_FLOPS) / HALF_FLOPS
    floor = sum(max(work.dram_bytes / rates.copy, work.seconds_of_arithmetic / faster) for work in passes)
    predicted = 1e6 * sum(work.seconds()[0] for work in passes)
    return {"floor_us": 1e6 * floor, "predicted_us": [predicted, predicted]}


def main(part: Part) -> None:
    """Each shape: both passes, of float32 and of bfloat16 responses; other accuracies; torch's own."""
    rates = Rates(part.out)
    for name, sizes in sizes_of(part.quick).items():
        _measure(part, rates, name, sizes)
        bench.responses.cache_clear()
        bench.check.cache_clear()
        torch.cuda.empty_cache()


def _measure(part: Part, rates: Rates, name: str, sizes: tuple[int, int]) -> None:
    shape = dict(zip("SN", sizes, strict=True))
    forward = [sheet.standardise(*sizes), sheet.multiply(*sizes)]
    backward = [sheet.standardise(*sizes), sheet.mix(*sizes), sheet.project(*sizes)]
    for dtype in ("float32", "bfloat16"):
        for what, gradient in (("forward", False), ("step", True)):
            case = bench.RdmCase(f"rdm {name}", shape, dtype, gradient=gradient)
            names: dict[str, Any] = {"case": case.name, "shape": shape, "dtype": dtype, "what": what}
            known = figures(forward + backward if gradient else forward, rates) if dtype == "float32" else {}
            computes: dict[str, Any] = {"v1fast": functional.rdm}
            if dtype == "float32":
                computes |= {"unit-rows": bench.unit_rows, "corrcoef": bench.corrcoef}
            for provider, compute in computes.items():
                prepare = partial(bench.RdmStep, case, "cuda", compute)
                own = known if provider == "v1fast" else {}
                line(part, prepare, gradient, names | {"provider": provider} | own)
    for accuracy in ("bfloat16", "high"):
        case = bench.RdmCase(f"rdm {name}", shape)
        prepare = partial(bench.RdmStep, case, "cuda", partial(functional.rdm, accuracy=accuracy))
        names = {"case": case.name, "shape": shape, "dtype": "float32", "what": f"forward, {accuracy}"}
        line(part, prepare, False, names | {"provider": "v1fast"})
