"""torch.compile of the eager chain: each shape takes the compiler seconds, so it has a part of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import bench_gaussian_readout as bench
from ..exact_gaussian_readout import operands
from .readouts import ALL, case_of, sizes_of
from .record import Part
from .steps import line


def main(part: Part) -> None:
    """Each shape in float32."""
    for name, sizes in sizes_of(part.quick).items():
        case = case_of(name, sizes, "float32", ALL)
        names: dict[str, Any] = {"case": name, "shape": case.shape, "dtype": "float32", "provider": "compile"}
        for what, backward in (("forward", False), ("step", True)):
            line(part, partial(bench.CompiledStep, case, "cuda"), backward, names | {"what": what}, least=8)
        operands.cache_clear()
