"""The same kernels with the best of the configurations that the launchers could choose.

``V1FAST_AUTOTUNE=1`` is set for this part: the readouts then time their configurations and keep the best. The tiles of
dissimilarity matrices are not autotuned; here some are tried.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import torch
from v1fast.kernels import _launch, rdm  # type: ignore[import-not-found]

from v1fast import functional

from .. import bench_gaussian_readout, bench_rdm
from ..exact_gaussian_readout import operands
from . import rdms, readouts
from .record import Part
from .steps import line

SHAPES = (  # side, columns at a time, warps, stages
    (64, 32, 4, 2), (64, 64, 4, 3), (128, 32, 8, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4),
    (128, 128, 8, 2), (128, 64, 4, 3),
)  # fmt: skip


def compile_all(part: Part, dtype: str) -> None:
    """Compile, on few neurons and images, what will be measured, so that measuring begins with it."""
    for name, sizes in readouts.sizes_of(part.quick).items():
        _, channels, height, width, _ = sizes
        for way in readouts.WAYS:
            case = readouts.case_of(name, (4, channels, height, width, 64), dtype, way.gradients)
            if not part.begin(f"{name} {way.name}"):
                return
            with part.guarded(f"{name} {way.name}"), way.chosen():
                step = bench_gaussian_readout.FunctionStep(case, "cuda", "seed")
                with torch.set_grad_enabled(way.backward):
                    output = step.forward(step.draw())
                if way.backward and step.upstream is not None:
                    step.backward(output, step.upstream)
        operands.cache_clear()


def main(part: Part) -> None:
    """Readouts, then tiles of matrices."""
    for dtype in readouts.DTYPES:
        for name, sizes in readouts.sizes_of(part.quick).items():
            for way in readouts.WAYS:
                _readout(part, name, sizes, dtype, way)
            operands.cache_clear()
            torch.cuda.empty_cache()
    for name, rows_and_columns in list(rdms.sizes_of(part.quick).items())[: 2 if part.quick else 3]:
        _tiles(part, name, rows_and_columns)


def _readout(part: Part, name: str, sizes: tuple[int, ...], dtype: str, way: readouts.Way) -> None:
    case = readouts.case_of(name, sizes, dtype, way.gradients)
    known = set(_launch._best)
    names = {"case": name, "dtype": dtype, "what": way.name, "provider": "v1fast, tuned"}
    with way.chosen():
        step = partial(bench_gaussian_readout.FunctionStep, case, "cuda", "seed")
        if line(part, step, way.backward, names, least=5):
            found = {str(key[0]): tuple(best) for key, best in _launch._best.items() if key not in known}
            part.rows[-1]["configurations"] = found  # neurons, channels, images, warps
            part.write()


def _tiles(part: Part, name: str, sizes: tuple[int, int]) -> None:
    case = bench_rdm.RdmCase(f"rdm {name}", dict(zip("SN", sizes, strict=True)))
    step = partial(bench_rdm.RdmStep, case, "cuda", functional.rdm)
    names: dict[str, Any] = {"case": case.name, "dtype": "float32", "what": "forward"}
    for shape in SHAPES[:2] if part.quick else SHAPES:
        with mock.patch.object(rdm, "tile_shape", lambda *how, shape=shape: rdm.Shape(*shape)):
            line(part, step, False, names | {"provider": f"tiles of {'/'.join(map(str, shape))}"}, least=5)
    bench_rdm.responses.cache_clear()
    bench_rdm.check.cache_clear()
