# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The normals that the Gaussian readout draws, as a tensor."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.contracts import philox_normal as contract

from ._common import draw
from ._launch import OPTIONS, jit, philox_block


@jit
def normal_kernel(
    out,  # [B, N, 2] float32
    seed,  # [1]
    neuron_index,  # [N] or None
    B,
    N,
    first_block,
    odd,
    BN: tl.constexpr,
    T: tl.constexpr,
):
    """Draw the normals of a block of neurons for a few images."""
    blocks = tl.cdiv(N, BN)
    n = (tl.program_id(0) % blocks * BN + tl.arange(0, BN))[:, None]
    b = (tl.program_id(0) // blocks * T + tl.arange(0, T))[None, :]
    has_n, has_b = n < N, b < B
    x, y = draw(None, seed, neuron_index, n, has_n, b, has_b, N, first_block, odd, False, tl.float32)
    at = out + (b.to(tl.int64) * N + n) * 2
    tl.store(at, x, mask=has_n & has_b)
    tl.store(at + 1, y, mask=has_n & has_b)


def philox_normal(
    seed: Tensor,  # [1] int64
    images: int,
    neurons: int,
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
) -> Tensor:  # [B, N, 2] float32
    """The op ``v1fast::philox_normal``."""
    out = contract.new_output(seed, images, neurons)
    if out.numel() == 0:
        return out
    index = None if neuron_index is None else neuron_index.contiguous()
    grid = (triton.cdiv(neurons, 64) * triton.cdiv(images, 4),)
    with torch.cuda.device_of(out):
        normal_kernel[grid](
            out,
            seed,
            index,
            images,
            neurons,
            *philox_block(image_offset),
            BN=64,
            T=4,
            num_warps=4,
            **OPTIONS,
        )
    return out
