"""Triton kernels and their launchers, imported as ``v1fast.kernels``. They register nothing themselves."""

from collections.abc import Callable
from typing import Any

CUDA: dict[str, Callable[..., Any]] = {}
"""Op name -> launcher with exactly that op's arguments; ``v1fast.ops`` registers each for CUDA tensors."""
