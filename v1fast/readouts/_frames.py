"""Videos: every frame is an image."""

from __future__ import annotations

from torch import Tensor


def check_map(x: Tensor, channels: int, height: int, width: int) -> None:
    """Raise ValueError unless the features are [B, C, H, W] or [B, C, T, H, W] of these sizes."""
    want = (channels, height, width)
    if x.dim() not in (4, 5) or (x.shape[1], *x.shape[-2:]) != want:
        axes = "[B, C, H, W] or [B, C, T, H, W]"
        raise ValueError(f"features: want {axes} with (C, H, W) = {want}, got {tuple(x.shape)}")


def fold_frames(x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Features [B, C, H, W] as they are; of videos [B, C, T, H, W] the frames as B T images, and a shift for each.

    ``channels_last_3d`` features are a view. Others are copied once, into the layout that the kernels read fastest.

    Args:
        x: features.
        shift: [B, 2], or for videos [B, 2] or [B, T, 2]; B and T may be 1 instead, for all.

    Raises:
        ValueError: the shift of a video has another shape; that of an image is left to be checked below.
    """
    if x.dim() != 5:
        return x, shift
    batch, frames = x.shape[0], x.shape[2]
    images = x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
    if shift is None:
        return images, None
    each = shift.unsqueeze(1) if shift.dim() == 2 else shift
    if each.dim() != 3 or each.shape[0] not in (1, batch) or each.shape[1] not in (1, frames) or each.shape[2] != 2:
        raise ValueError(
            f"shift: want [B, 2] = ({batch}, 2) or [B, T, 2] = ({batch}, {frames}, 2), got {tuple(shift.shape)}"
        )
    return images, each.expand(batch, frames, 2).flatten(0, 1)


def unfold_frames(out: Tensor, x: Tensor, axis: int = -2) -> Tensor:
    """The result of the images that ``fold_frames`` made of ``x``, with an axis of frames beside that of the batch."""
    return out.unflatten(axis, (x.shape[0], x.shape[2])) if x.dim() == 5 else out
